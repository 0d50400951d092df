# Flags that every target of this project is compiled with (zb_flags). Bits come first: no contraction, no
# reassociation, whatever the compiler's default is.
add_library(zb_flags INTERFACE)
target_compile_options(zb_flags INTERFACE
  -fmacro-prefix-map=${CMAKE_SOURCE_DIR}/= # messages name files as the tree does
  -ffp-contract=off -fno-fast-math -fno-math-errno -fno-common
  -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Wwrite-strings -Wvla -Wundef
  $<$<C_COMPILER_ID:GNU>:-Wno-format-truncation>) # messages are cut at their buffer on purpose
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|i.86)$")
  target_compile_options(zb_flags INTERFACE -msse2 -mfpmath=sse)
endif()
if(ZB_WERROR)
  target_compile_options(zb_flags INTERFACE -Werror)
endif()
if(ZB_SANITIZE)
  target_compile_options(zb_flags INTERFACE -fsanitize=${ZB_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  target_link_options(zb_flags INTERFACE -fsanitize=${ZB_SANITIZE})
  target_compile_definitions(zb_flags INTERFACE ZB_SANITIZED=1)
endif()
if(ZB_COVERAGE)
  target_compile_options(zb_flags INTERFACE --coverage -fprofile-update=atomic)
  target_link_options(zb_flags INTERFACE --coverage)
  target_compile_definitions(zb_flags INTERFACE ZB_COVERAGE=1)
endif()

# zb_add_folder(name file...): the object library zb_<name> of one folder of the map. Internal headers are
# included from the project's root ("kernels/kernels.h"), public ones as <zerobit/...>.
function(zb_add_folder name)
  add_library(zb_${name} OBJECT ${ARGN})
  target_include_directories(zb_${name} PRIVATE ${CMAKE_SOURCE_DIR} ${CMAKE_SOURCE_DIR}/include
    ${CMAKE_BINARY_DIR}/include ${ZB_CJSON_INCLUDE_DIRS})
  target_link_libraries(zb_${name} PRIVATE zb_flags Threads::Threads)
endfunction()
