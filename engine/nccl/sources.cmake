# The sources of engine/nccl: the library, and the stand-in of NCCL, build the same.
set(ZB_ENGINE_NCCL_SOURCES comm_nccl.c control.c environment.c exchange.c failure.c group.c meet.c native.c
  rendezvous.c world.c)
list(TRANSFORM ZB_ENGINE_NCCL_SOURCES PREPEND ${CMAKE_CURRENT_LIST_DIR}/)
