/* The engine for tensors of float16. */

#define DTYPE FLOAT16
#define NAME(function) function##_float16
#include "engine.h"
