/* CRC-32, as zip files have it: of the polynomial 0xEDB88320, bits reflected. */

#ifndef BELAY_CRC32_H
#define BELAY_CRC32_H

#include <stddef.h>
#include <stdint.h>

/* The checksum of `count` more bytes after those whose checksum is `value`; 0 is that of none. */
uint32_t belay_crc32(uint32_t value, const unsigned char *data, size_t count);

#endif
