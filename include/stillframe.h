/* SPDX-License-Identifier: Apache-2.0 OR MIT */
#ifndef STILLFRAME_H
#define STILLFRAME_H

#ifdef __cplusplus
extern "C" {
#endif

/* The version of the library, "MAJOR.MINOR.PATCH". Never NULL; lives as long as the program. */
const char *sf_version(void);

#ifdef __cplusplus
}
#endif

#endif
