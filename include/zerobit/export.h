/* Marks what the shared library exports; everything else stays hidden. */
#ifndef ZEROBIT_EXPORT_H
#define ZEROBIT_EXPORT_H

#define ZB_API __attribute__((visibility("default")))
#define ZB_NORETURN __attribute__((noreturn))

#endif
