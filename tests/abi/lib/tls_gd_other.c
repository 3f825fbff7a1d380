// tls_gd_other.c - a second general-dynamic library: opened after tls_gd was closed it may
// get the same TLS module number, and must still show its own initial values.
//
// Invariant: a thread sees 8800 until it writes itself.
__thread long gd_other_value = 8800;

long *gd_other_address(void);
long *gd_other_address(void) { return &gd_other_value; }
