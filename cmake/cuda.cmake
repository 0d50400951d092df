# How CUDA code is compiled: the bits first, as in compiler.cmake. ZB_CUDA_ARCHITECTURES: machine code for each, and PTX, for GPUs
# that it does not name, of those without "-real".
if(NOT ZB_WITH_CUDA)
  return()
endif()
if(CUDAToolkit_VERSION VERSION_GREATER_EQUAL 13.0)
  set(ZB_CUDA_ARCHITECTURES "75-real;80-real;86-real;89-real;90;100-real;120" CACHE STRING "Compute capabilities, as CMAKE_CUDA_ARCHITECTURES")
elseif(CUDAToolkit_VERSION VERSION_GREATER_EQUAL 12.0)
  set(ZB_CUDA_ARCHITECTURES "70-real;75-real;80-real;86-real;89-real;90" CACHE STRING "Compute capabilities, as CMAKE_CUDA_ARCHITECTURES")
else()
  set(ZB_CUDA_ARCHITECTURES "70-real;75-real;80" CACHE STRING "Compute capabilities, as CMAKE_CUDA_ARCHITECTURES")
endif()
set(CMAKE_CUDA_ARCHITECTURES ${ZB_CUDA_ARCHITECTURES})
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
enable_language(CUDA)

# No contraction, no flushing, IEEE division and square root, on the GPU and on the host side of the same file.
add_library(zb_cuda_flags INTERFACE)
target_compile_options(zb_cuda_flags INTERFACE
  $<$<COMPILE_LANGUAGE:CUDA>:-fmad=false -ftz=false -prec-div=true -prec-sqrt=true -lineinfo
    -Xcompiler=-ffp-contract=off,-fno-fast-math,-Wall,-fmacro-prefix-map=${CMAKE_SOURCE_DIR}/=>)
if(ZB_WERROR)
  target_compile_options(zb_cuda_flags INTERFACE $<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings>)
endif()
