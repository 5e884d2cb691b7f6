/* The engine for tensors of float32. */

#define DTYPE FLOAT32
#define NAME(function) function##_float32
#include "engine.h"
