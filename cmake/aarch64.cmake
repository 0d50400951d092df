# Cross-compile for 64-bit Arm and run under emulation; used by tools/check-arm64.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CROSSCOMPILING_EMULATOR
  "qemu-aarch64;-L;/usr/aarch64-linux-gnu;-E;LD_LIBRARY_PATH=$ENV{ZB_ARM64_SYSROOT}/usr/lib/aarch64-linux-gnu")
