typedef int zb_sim_empty;
