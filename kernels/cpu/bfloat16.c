/* The engine for tensors of bfloat16. */

#define DTYPE BFLOAT16
#define NAME(function) function##_bfloat16
#include "engine.h"
