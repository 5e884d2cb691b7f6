/* The engine of one dtype: included once by float32.c and its like, which define DTYPE and NAME. */

#include <stdlib.h>

#include "common.h"
#include "job.h"

#include "vec.h"

#include "activation.h"
#include "steps.h"

#include "contiguous.h"
#include "last.h"

#include "call.h"
#include "forward.h"

#include "backward.h"
#include "parameter_rows.h"
#include "rows.h"
#include "rows_backward.h"
#include "gated.h"
#include "modulation.h"
#include "weight.h"
