/* The engine for tensors of float64. */

#define DTYPE FLOAT64
#define NAME(function) function##_float64
#include "engine.h"
