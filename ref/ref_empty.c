typedef int zb_ref_empty;
