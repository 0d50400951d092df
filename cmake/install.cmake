# Library, headers, command, and the two ways to find them: find_package(zerobit) and pkg-config.
include(CMakePackageConfigHelpers)

install(TARGETS zerobit_static zerobit_shared zb_flags EXPORT zerobit-targets
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(TARGETS zerobit RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(DIRECTORY include/zerobit DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.h"
  PATTERN cuda.h EXCLUDE PATTERN mpi.h EXCLUDE PATTERN nccl.h EXCLUDE)
install(FILES ${CMAKE_BINARY_DIR}/include/zerobit/version.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/zerobit)
install(DIRECTORY examples/configs examples/models DESTINATION ${CMAKE_INSTALL_DATADIR}/zerobit)

install(EXPORT zerobit-targets NAMESPACE zerobit:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/zerobit)
configure_package_config_file(cmake/zerobit-config.cmake.in ${CMAKE_BINARY_DIR}/zerobit-config.cmake
  INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/zerobit)
write_basic_package_version_file(${CMAKE_BINARY_DIR}/zerobit-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_BINARY_DIR}/zerobit-config.cmake ${CMAKE_BINARY_DIR}/zerobit-config-version.cmake
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/zerobit)

# Seen from the .pc files, so that they hold wherever `cmake --install --prefix` puts them.
file(RELATIVE_PATH ZB_PREFIX_OF_PC "${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig" "${CMAKE_INSTALL_PREFIX}")

# Ranks on MPI: find_package(zerobit COMPONENTS mpi) and pkg-config zerobit-mpi. Who asks for neither needs no MPI.
if(ZB_WITH_MPI)
  install(TARGETS zerobit_mpi EXPORT zerobit-mpi-targets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
  install(FILES include/zerobit/mpi.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/zerobit)
  install(EXPORT zerobit-mpi-targets NAMESPACE zerobit:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/zerobit)
  list(JOIN MPI_C_LIBRARIES " " ZB_MPI_LIBRARIES)
  configure_file(cmake/zerobit-mpi.pc.in ${CMAKE_BINARY_DIR}/zerobit-mpi.pc @ONLY)
  install(FILES ${CMAKE_BINARY_DIR}/zerobit-mpi.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
endif()

# Devices on CUDA, and ranks on NCCL, likewise: COMPONENTS cuda, nccl; zerobit-cuda, zerobit-nccl. nvcc's objects need the C++ library.
if(ZB_WITH_CUDA)
  install(TARGETS zerobit_cuda EXPORT zerobit-cuda-targets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
  install(FILES include/zerobit/cuda.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/zerobit)
  install(EXPORT zerobit-cuda-targets NAMESPACE zerobit:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/zerobit)
  configure_file(cmake/zerobit-cuda.pc.in ${CMAKE_BINARY_DIR}/zerobit-cuda.pc @ONLY)
  install(FILES ${CMAKE_BINARY_DIR}/zerobit-cuda.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
endif()
if(ZB_WITH_NCCL)
  install(TARGETS zerobit_nccl EXPORT zerobit-nccl-targets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
  install(FILES include/zerobit/nccl.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/zerobit)
  install(EXPORT zerobit-nccl-targets NAMESPACE zerobit:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/zerobit)
  configure_file(cmake/zerobit-nccl.pc.in ${CMAKE_BINARY_DIR}/zerobit-nccl.pc @ONLY)
  install(FILES ${CMAKE_BINARY_DIR}/zerobit-nccl.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
endif()

configure_file(cmake/zerobit.pc.in ${CMAKE_BINARY_DIR}/zerobit.pc @ONLY)
install(FILES ${CMAKE_BINARY_DIR}/zerobit.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
