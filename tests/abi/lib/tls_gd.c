// tls_gd.c - a library with TLS of the general-dynamic model, opened by tls_dlopen_test.
//
// Invariant: a thread sees kGdInitial and zeroes until it writes itself.
__thread long gd_value = 7700;
__thread char gd_zeroes[3000];

long *gd_value_address(void);
char *gd_zeroes_address(void);
long *gd_value_address(void) { return &gd_value; }
char *gd_zeroes_address(void) { return gd_zeroes; }
