typedef int zb_engine_empty;
