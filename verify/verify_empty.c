typedef int zb_verify_empty;
