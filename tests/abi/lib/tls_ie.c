// tls_ie.c - a library with TLS of the initial-exec model: its block lies in the static TLS
// of threads that were already running when it was opened.
//
// Invariant: a thread sees 5500 and zeroes until it writes itself.
__thread __attribute__((tls_model("initial-exec"))) long ie_value = 5500;
__thread __attribute__((tls_model("initial-exec"))) long ie_zeroes[8];

long *ie_value_address(void);
long *ie_zeroes_address(void);
long *ie_value_address(void) { return &ie_value; }
long *ie_zeroes_address(void) { return ie_zeroes; }
