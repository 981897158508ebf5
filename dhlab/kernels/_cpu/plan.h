/* Where a row of Plan.pack holds what, in floats: see PARTS in kernels/plan.py. */
#ifndef DHLAB_PLAN_H
#define DHLAB_PLAN_H

enum { MATRIX_AT = 0, FILL_AT = 9, STAIN_AT = 12, COLOUR_AT = 57, GAMMA_AT = 69, GAUSSIAN_AT = 70, LAPLACE_AT = 71,
       POISSON_AT = 72, SALT_AT = 73, PEPPER_AT = 74, DROPOUT_AT = 75, BLUR_AT = 78, SHARPEN_AT = 79, BLOCK_FLOATS = 80 };

#endif
