// Decodes a rectangle of a JPEG: what lies below it is not read, and what lies beside or above it is entropy-decoded only.
//
// The pixels are those of a decoder of the whole image (libjpeg-turbo's defaults, as in OpenCV). Whatever is out of the
// ordinary (a warning, CMYK, an error) is left to such a decoder: the function then says so and nothing more.
#define _GNU_SOURCE  // for fopencookie
#include <pthread.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

enum { MAX_PIXELS = 1 << 30 };  // of the whole image, which a progressive JPEG is read into memory as

typedef struct {
  struct jpeg_error_mgr base;
  jmp_buf escape;
} Errors;

static void Escape(j_common_ptr info) { longjmp(((Errors*)info->err)->escape, 1); }
static void Note(j_common_ptr info, int level) {
  if (level < 0) ++info->err->num_warnings;
}

// Writes `height` rows of `width` BGR pixels from column x and row y on to `out`, which has room for them.
// 1: done; 0: not done, decode the whole image instead.
int decode_region(const uint8_t* data, unsigned long size, int x, int y, int width, int height, uint8_t* out) {
  struct jpeg_decompress_struct info;
  Errors errors;
  uint8_t* volatile row = NULL;
  volatile int done = 0;
  memset(&info, 0, sizeof info);
  info.err = jpeg_std_error(&errors.base);
  errors.base.error_exit = Escape;
  errors.base.emit_message = Note;
  if (setjmp(errors.escape) == 0) {
    jpeg_create_decompress(&info);
    jpeg_mem_src(&info, (unsigned char*)data, size);
    if (jpeg_read_header(&info, TRUE) == JPEG_HEADER_OK && (info.num_components == 1 || info.num_components == 3) &&
        (uint64_t)info.image_width * info.image_height <= MAX_PIXELS) {
      info.out_color_space = JCS_EXT_BGR;
      jpeg_start_decompress(&info);
      const int columns = info.output_width, rows = info.output_height;
      if (x >= 0 && y >= 0 && width > 0 && height > 0 && x <= columns - width && y <= rows - height) {
        // Chroma is smoothed across columns, so that those at the border of what is decoded are not the whole image's:
        // decode two more on each side. The library also widens to where its blocks begin.
        const int last = x + width + 2 < columns ? x + width + 2 : columns;
        JDIMENSION first = x > 2 ? x - 2 : 0;
        JDIMENSION decoded = last - first;
        jpeg_crop_scanline(&info, &first, &decoded);
        row = malloc((size_t)info.output_width * 3);
        if (row && (y == 0 || jpeg_skip_scanlines(&info, y) == (JDIMENSION)y)) {
          int i = 0;
          for (; i < height; ++i) {
            JSAMPROW rows_out[1] = {row};
            if (jpeg_read_scanlines(&info, rows_out, 1) != 1 || errors.base.num_warnings) break;
            memcpy(out + (size_t)i * width * 3, row + (size_t)(x - first) * 3, (size_t)width * 3);
          }
          done = i == height && errors.base.num_warnings == 0;
        }
      }
    }
  }
  free(row);
  jpeg_destroy_decompress(&info);
  return done;
}

// --- what decoders write about a file --------------------------------------------------------------------------------
//
// OpenCV's libjpeg and libpng write their warnings to stderr by themselves, without the file's name. Between
// `begin_quiet` and `end_quiet` nothing that the calling thread writes by C's stderr is shown; what other threads write
// (TensorFlow does) passes. Python's own stderr is another one.

static __thread int quiet;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int users;
static FILE* shown;
static FILE* filter;

static ssize_t Filter(void* unused, const char* text, size_t size) {
  (void)unused;
  if (!quiet && fwrite(text, 1, size, shown) == size) fflush(shown);
  return size;
}

void begin_quiet(void) {
  pthread_mutex_lock(&lock);
  if (!filter) {
    const cookie_io_functions_t functions = {.write = Filter};
    filter = fopencookie(NULL, "w", functions);
    if (filter) setvbuf(filter, NULL, _IONBF, 0);
  }
  if (users++ == 0 && filter) {
    shown = stderr;
    stderr = filter;
  }
  ++quiet;
  pthread_mutex_unlock(&lock);
}

void end_quiet(void) {
  pthread_mutex_lock(&lock);
  --quiet;
  if (--users == 0 && filter) stderr = shown;
  pthread_mutex_unlock(&lock);
}
