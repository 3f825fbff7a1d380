# Makefile - builds weft, all of it, into $(B); `make help` lists the targets.
#
# Sources are found by wildcard: a new .cc, .S or test needs no line here. Everything made
# lands below $(B) (default build; build/debug for BUILD=debug), so `rm -r` undoes it.
# Flags of a single test stand in its own first lines: `libs: -lfoo`, `cflags: -O2`.

VERSION := 0.1.0
BUILD   ?= release
ifeq ($(BUILD),debug)
B       ?= build/debug
OPT     := -O0 -g -DWEFT_DEBUG_CHECKS
else ifeq ($(BUILD),release)
B       ?= build
OPT     := -O2 -g
else
$(error BUILD is release or debug, not $(BUILD))
endif

# The same directory by another name would be other flags, hence all objects made anew.
override B := $(patsubst $(CURDIR)/%,%,$(B))

PREFIX  ?= /usr/local
DESTDIR ?=
JOBS    ?= $(shell nproc)
CC      := gcc
CXX     := g++
export B BUILD

WARN    := -Wall -Wextra -Wshadow -Wconversion -Wno-ignored-attributes -Werror
# The library runs inside other programs' threads: no exceptions, no RTTI, no static
# guards, no stack protector (its canary is per G, and the engine switches Gs), and
# initial-exec TLS, which never allocates. Unwind tables stay for backtraces.
LIBCXX  := -std=c++20 $(OPT) -fPIC -fno-exceptions -fno-rtti -fno-threadsafe-statics \
           -fvisibility=hidden -ftls-model=initial-exec -fno-stack-protector \
           -fasynchronous-unwind-tables -U_FORTIFY_SOURCE $(WARN) -I.
LIBASM  := -g -fPIC -Wa,--noexecstack -I.
TESTC   := -std=gnu11 -O1 -g -Wall -Wextra -pthread
TESTCXX := -std=gnu++20 -O1 -g -Wall -Wextra -pthread
PLAINC  := -std=gnu11 -O2 -g -Wall -Wextra -pthread
DEPGEN   = -MMD -MP -MF $@.d
# One line for each file made; V=1 shows the commands.
run      = $(if $(V),,@printf '  %-4s %s\n' $(1) $@ &&) $(2)

# The unwinder of dumps. Debian's own libunwind.a is not position independent and cannot
# go into a shared library; LLVM's is, and asks for nothing but libc. scripts/deps unpacks
# it into $(B)/llvm where the package cannot be installed (it conflicts with libunwind-dev).
# Without either the build still works, and dumps have no stacks.
UNW_A   := $(firstword $(wildcard $(B)/llvm/usr/lib/llvm-*/lib/libunwind.a \
                                  /usr/lib/llvm-*/lib/libunwind.a))
UNW_INC := $(firstword $(wildcard $(B)/llvm/usr/include/libunwind /usr/include/libunwind))
ifneq ($(and $(UNW_A),$(UNW_INC)),)
LIBCXX  += -DWEFT_HAVE_UNWIND=1 -isystem $(UNW_INC)
UNW     := $(B)/obj/unwind.a
else
LIBCXX  += -DWEFT_HAVE_UNWIND=0
UNW     :=
endif

# ---- what there is ---------------------------------------------------------------

obj = $(patsubst %,$(B)/obj/%.o,$(1))

LAUNCHER_SRC := $(wildcard preload/launcher*.cc) preload/knobs.cc
ENGINE_SRC   := $(wildcard asm/*.S sched/*.cc)
LIB_SRC      := $(ENGINE_SRC) $(filter-out preload/launcher%,$(wildcard preload/*.cc))
UNIT_SRC     := $(wildcard tests/unit/*_test.cc)
UNIT_SUPPORT := $(filter-out %_test.cc,$(wildcard tests/unit/*.cc)) preload/knobs.cc
ABI_SRC      := $(wildcard tests/abi/*_test.c tests/abi/*_test.cc)
ABI_LIB_SRC  := $(wildcard tests/abi/lib/*.c)
MODEL_SRC    := $(wildcard tests/model/*_model.cc)
PLAIN_SRC    := $(wildcard tests/stress/*.c tests/stress/*.cc tests/apps/*.c tests/demo/*.c tests/demo/*.cc)

bin = $(addprefix $(B)/,$(basename $(1)))
TEST_BIN := $(call bin,$(UNIT_SRC) $(ABI_SRC) $(MODEL_SRC) $(PLAIN_SRC)) \
            $(patsubst %.c,$(B)/%.so,$(ABI_LIB_SRC))

# demo, check, apps and bench install packages first and then build anew, in parallel.
SUBMAKE = $(MAKE) --no-print-directory $(if $(findstring -j,$(MAKEFLAGS)),,-j$(JOBS))

# ---- targets ---------------------------------------------------------------------

.PHONY: all demo check apps bench tests install uninstall clean help man FORCE
.DELETE_ON_ERROR:
.SUFFIXES:

all: $(B)/libweft.so $(B)/weft ## the library and the launcher

demo: ## the same program natively and on weft: results compared, times in a table
	@scripts/deps build
	@$(SUBMAKE) all $(call bin,$(wildcard tests/demo/*.c tests/demo/*.cc))
	@scripts/demo

check: ## every test; ONLY=regex for some; ends with `N passed, N failed`
	@scripts/deps build check
	@$(SUBMAKE) -k all tests || echo "make check: not everything built; going on with what did"
	@scripts/check $(if $(ONLY),-k '$(ONLY)')

apps: ## the heavy real programs; ONLY=regex for some
	@scripts/deps build check apps
	@$(SUBMAKE) all $(call bin,$(wildcard tests/apps/*.c))
	@scripts/check -a $(if $(ONLY),-k '$(ONLY)')

bench: ## native, weft and (if installed) Go in one table; ONLY=regex for some rows
	@scripts/deps build
	@$(SUBMAKE) all
	@scripts/bench $(if $(ONLY),'$(ONLY)')

tests: $(TEST_BIN) # the test programs, without running them

LIBDIR = $(DESTDIR)$(PREFIX)/lib/weft
MANDIR = $(DESTDIR)$(PREFIX)/share/man
MANUALS = $(wildcard man/*.[0-9])
install: all ## to $(DESTDIR)$(PREFIX): bin/weft, lib/weft/libweft.so, manuals
	install -d $(DESTDIR)$(PREFIX)/bin $(LIBDIR)
	install -m 755 $(B)/weft $(DESTDIR)$(PREFIX)/bin/weft
	install -m 755 $(B)/libweft.so $(LIBDIR)/libweft.so
	$(foreach m,$(MANUALS),install -D -m 644 $(m) $(MANDIR)/man$(subst .,,$(suffix $(m)))/$(notdir $(m)) &&) true

uninstall: ## takes back what install put there
	rm -f $(DESTDIR)$(PREFIX)/bin/weft $(LIBDIR)/libweft.so
	rm -f $(foreach m,$(MANUALS),$(MANDIR)/man$(subst .,,$(suffix $(m)))/$(notdir $(m)))
	[ ! -d $(LIBDIR) ] || rmdir --ignore-fail-on-non-empty $(LIBDIR)

man: $(B)/weft ## writes the environment section of man/weft.1 from the knob table
	scripts/manual --write

clean: ## removes what was built
	rm -rf $(B)

help: ## this
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile
	@echo "  BUILD=debug builds with checks into build/debug; B=dir builds somewhere else; V=1 shows commands."

# ---- the library and the launcher --------------------------------------------------

# -z now: no lazy binding, the resolver would run on a G's stack in the engine.
# -Bsymbolic-functions: our own calls never leave for a namesake in the program.
# --exclude-libs: libunwind's and libgcc's _Unwind_* must not replace the program's.
# The C driver links, so libstdc++ is not there to be needed.
LIBLINK := -shared -static-libgcc -Wl,-soname,libweft.so -Wl,-z,now -Wl,-z,relro \
           -Wl,-z,noexecstack -Wl,-z,nodelete -Wl,--no-undefined -Wl,--exclude-libs,ALL \
           -Wl,-Bsymbolic-functions -Wl,--build-id -Wl,--as-needed

$(B)/libweft.so: $(call obj,$(LIB_SRC)) $(UNW) Makefile
	$(call run,CC,$(CC)) $(LIBLINK) -o $@ $(call obj,$(LIB_SRC)) $(UNW)

# libunwind guards a cache of registered frames with a pthread_rwlock, which would be the
# one we interpose. We register none, so the three calls go to stubs (unwind_lock.cc).
$(B)/obj/unwind.a: $(UNW_A) Makefile
	@mkdir -p $(@D)
	$(call run,OBJ,objcopy) --redefine-sym pthread_rwlock_rdlock=weft_unwind_rdlock \
	        --redefine-sym pthread_rwlock_wrlock=weft_unwind_wrlock \
	        --redefine-sym pthread_rwlock_unlock=weft_unwind_unlock $(UNW_A) $@

$(B)/weft: $(call obj,$(LAUNCHER_SRC)) Makefile
	$(call run,CC,$(CC)) -pie -Wl,-z,now -o $@ $(call obj,$(LAUNCHER_SRC))

# Objects depend on the flags too: other flags, other objects.
$(B)/obj/flags: FORCE
	@mkdir -p $(@D)
	@echo '$(subst ','\'',$(LIBCXX) $(LIBASM) $(VERSION))' | cmp -s - $@ || \
	 echo '$(subst ','\'',$(LIBCXX) $(LIBASM) $(VERSION))' > $@

$(B)/obj/%.cc.o: %.cc $(B)/obj/flags
	@mkdir -p $(@D)
	$(call run,CXX,$(CXX)) $(LIBCXX) $(DEPGEN) -DWEFT_VERSION='"$(VERSION)"' -c -o $@ $<

$(B)/obj/%.S.o: %.S $(B)/obj/flags
	@mkdir -p $(@D)
	$(call run,CC,$(CC)) $(LIBASM) $(DEPGEN) -c -o $@ $<

# ---- tests -------------------------------------------------------------------------

# Lines `libs: -lfoo` and `cflags: -O2` in a test's first ten.
libs = $$(sed -n '1,10s/.*\blibs: *\(-[^*]*\).*/\1/p' $<)
cflags = $$(sed -n '1,10s/.*\bcflags: *\(-[^*]*\).*/\1/p' $<)

# Unit tests take what they use of the engine and of a fake host (tests/unit/*.cc that is
# no test) from one archive.
UNIT_OBJ := $(call obj,$(ENGINE_SRC)) $(patsubst %,$(B)/tobj/%.o,$(UNIT_SUPPORT))
$(B)/tobj/engine.a: $(UNIT_OBJ)
	@rm -f $@
	$(call run,AR,ar) rcs $@ $^

$(B)/tobj/%.cc.o: %.cc
	@mkdir -p $(@D)
	$(call run,CXX,$(CXX)) $(TESTCXX) -I. -DWEFT_UNIT_TEST $(DEPGEN) -c -o $@ $<

$(call bin,$(UNIT_SRC)): $(B)/%: %.cc $(B)/tobj/engine.a
	@mkdir -p $(@D)
	$(call run,CXX,$(CXX)) $(TESTCXX) -I. -DWEFT_UNIT_TEST $(cflags) $(DEPGEN) -o $@ $< $(B)/tobj/engine.a $(libs) -lcriterion

$(call bin,$(MODEL_SRC)): $(B)/%: %.cc
	@mkdir -p $(@D)
	$(call run,CXX,$(CXX)) $(TESTCXX) -O2 -I. $(cflags) $(DEPGEN) -o $@ $< $(libs)

# The programs below know nothing of weft: no -I.
$(call bin,$(filter %.c,$(ABI_SRC))): $(B)/%: %.c
	@mkdir -p $(@D)
	$(call run,CC,$(CC)) $(TESTC) $(cflags) $(DEPGEN) -o $@ $< $(libs) -lcmocka -lm

$(call bin,$(filter %.cc,$(ABI_SRC))): $(B)/%: %.cc
	@mkdir -p $(@D)
	$(call run,CXX,$(CXX)) $(TESTCXX) $(cflags) $(DEPGEN) -o $@ $< $(libs) -lcmocka

$(patsubst %.c,$(B)/%.so,$(ABI_LIB_SRC)): $(B)/%.so: %.c
	@mkdir -p $(@D)
	$(call run,CC,$(CC)) $(TESTC) -fPIC -shared $(cflags) $(DEPGEN) -o $@ $< $(libs)

$(call bin,$(filter %.c,$(PLAIN_SRC))): $(B)/%: %.c
	@mkdir -p $(@D)
	$(call run,CC,$(CC)) $(PLAINC) $(cflags) $(DEPGEN) -o $@ $< $(libs) -lm

$(call bin,$(filter %.cc,$(PLAIN_SRC))): $(B)/%: %.cc
	@mkdir -p $(@D)
	$(call run,CXX,$(CXX)) $(TESTCXX) -O2 $(cflags) $(DEPGEN) -o $@ $< $(libs)

-include $(shell find $(B) -name '*.d' -not -path '*/llvm/*' 2>/dev/null)
