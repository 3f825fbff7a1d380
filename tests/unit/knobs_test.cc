// knobs_test.cc - the WEFT_* parser: table against struct, good values, bad values, lines.
//
// Uses knobs_parse_into with environments made by hand; nothing of the process is read.
#include <criterion/criterion.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "preload/knobs.h"

using namespace weft;

namespace {

std::string said;
int lines;

void hear(const char* line, size_t n) {
  said.append(line, n);
  lines++;
}

Knobs parse(std::vector<const char*> env) {
  said.clear();
  lines = 0;
  env.push_back(nullptr);
  Knobs k;
  knobs_parse_into(k, const_cast<char**>(env.data()), hear);
  return k;
}

bool said_has(const char* text) { return said.find(text) != std::string::npos; }

// Every line is whole, single, and opens with the name of the program.
void expect_lines(int n) {
  cr_expect_eq(lines, n, "%d lines: %s", lines, said.c_str());
  cr_expect_eq(std::count(said.begin(), said.end(), '\n'), n);
  if (n) cr_expect(said.starts_with("weft: ") && said.ends_with("\n"));
}

}  // namespace

Test(knobs, the_initial_text_of_each_row_is_the_default_of_its_field) {
  Knobs fresh;
  for (KnobTable table : {knob_table(), knob_debug_table()}) {
    for (size_t i = 0; i < table.count; i++) {
      const KnobRow& row = table.rows[i];
      bool debug = table.rows == knob_debug_table().rows;
      if (!*row.initial) continue;
      std::string entry = std::string(debug ? "WEFT_DEBUG=" : "") + row.name + "=" + row.initial;
      Knobs k = parse({entry.c_str()});
      expect_lines(0);
      k.debug = nullptr;  // the raw text itself, set by any key
      cr_expect_eq(memcmp(&k, &fresh, sizeof k), 0, "%s changes a default", entry.c_str());
    }
  }
}

Test(knobs, every_variable_takes_its_good_values) {
  Knobs k = parse({"WEFT_PROCS=8", "WEFT_PREEMPT=off", "WEFT_STACK=64k", "WEFT_SPIN=0",
                   "WEFT_NETPOLL=off", "WEFT_ONLY=a,b", "WEFT_SKIP=c", "WEFT_STATS=1",
                   "WEFT_DEBUG=schedtrace=500,scheddetail=1,wire=1,dumpsig=12",
                   "PATH=/bin", "WEFTY=1", "XWEFT_PROCS=1"});
  expect_lines(0);
  cr_expect_eq(k.procs, 8);
  cr_expect_eq(k.preempt_ms, 0);
  cr_expect_eq(k.stack_bytes, 65536u);
  cr_expect_eq(k.spin_us, 0);
  cr_expect(k.netpoll == Netpoll::kOff);
  cr_expect_str_eq(k.only, "a,b");
  cr_expect_str_eq(k.skip, "c");
  cr_expect(k.stats);
  cr_expect_eq(k.schedtrace_ms, 500);
  cr_expect(k.scheddetail && k.wire);
  cr_expect_eq(k.dumpsig, 12);
}

Test(knobs, ends_of_ranges_are_in_and_beyond_is_out) {
  cr_expect(knob_value_ok("WEFT_PROCS", "1") && knob_value_ok("WEFT_PROCS", "1024"));
  for (const char* bad : {"0", "1025", "-1", "+1", " 1", "1 ", "1x", "0x1", "", "1e2",
                          "99999999999999999999999999"}) {
    cr_expect_not(knob_value_ok("WEFT_PROCS", bad), "WEFT_PROCS=%s", bad);
  }
  cr_expect(knob_value_ok("WEFT_PREEMPT", "1000") && knob_value_ok("WEFT_PREEMPT", "1"));
  cr_expect_not(knob_value_ok("WEFT_PREEMPT", "0"));
  cr_expect_not(knob_value_ok("WEFT_PREEMPT", "offf"));
  cr_expect_not(knob_value_ok("WEFT_PREEMPT", "of"));
}

Test(knobs, sizes_take_suffixes_and_do_not_overflow) {
  cr_expect_eq(parse({"WEFT_STACK=16384"}).stack_bytes, 16384u);
  cr_expect_eq(parse({"WEFT_STACK=2M"}).stack_bytes, size_t{2} << 20);
  cr_expect_eq(parse({"WEFT_STACK=1g"}).stack_bytes, size_t{1} << 30);
  for (const char* bad : {"16383", "15k", "k", "1kk", "1.5m", "1025g", "2000000000000g", "1t"}) {
    cr_expect_not(knob_value_ok("WEFT_STACK", bad), "WEFT_STACK=%s", bad);
  }
}

Test(knobs, signals_by_name_and_number_but_not_those_of_others) {
  cr_expect_eq(parse({"WEFT_DEBUG=dumpsig=SIGUSR2"}).dumpsig, 12);
  cr_expect_eq(parse({"WEFT_DEBUG=dumpsig=QUIT"}).dumpsig, 3);
  cr_expect_eq(parse({"WEFT_DEBUG=dumpsig=RTMIN"}).dumpsig, 34);
  cr_expect_eq(parse({"WEFT_DEBUG=dumpsig=SIGRTMIN+2"}).dumpsig, 36);
  for (const char* bad : {"9", "19", "32", "33", "23", "11", "0", "65", "KILL", "SEGV", "URG",
                          "RTMIN+31", "RTMIN+", "SIG", "usr2"}) {
    Knobs k = parse({(std::string("WEFT_DEBUG=dumpsig=") + bad).c_str()});
    expect_lines(1);
    cr_expect_eq(k.dumpsig, 0, "dumpsig=%s", bad);
  }
}

Test(knobs, a_bad_value_is_one_line_with_name_value_and_what_is_accepted) {
  Knobs k = parse({"WEFT_PROCS=abc"});
  expect_lines(1);
  cr_expect(said_has("WEFT_PROCS=abc") && said_has("1..1024"), "%s", said.c_str());
  cr_expect_eq(k.procs, 0);
  k = parse({"WEFT_NETPOLL=uring"});
  expect_lines(1);
  cr_expect(said_has("WEFT_NETPOLL") && said_has("epoll, off"), "%s", said.c_str());
  cr_expect(k.netpoll == Netpoll::kEpoll);
  parse({"WEFT_STATS=yes", "WEFT_SPIN=1001", "WEFT_PREEMPT=never"});
  expect_lines(3);
}

Test(knobs, an_unknown_name_is_one_line_with_every_known_name) {
  parse({"WEFT_PROC=2"});
  expect_lines(1);
  cr_expect(said_has("WEFT_PROC "), "%s", said.c_str());
  for (size_t i = 0; i < knob_table().count; i++) cr_expect(said_has(knob_table().rows[i].name));
  parse({"WEFT_=2"});
  expect_lines(1);
}

Test(knobs, debug_keys_that_are_good_count_beside_a_bad_one) {
  Knobs k = parse({"WEFT_DEBUG=wire=2,schedtrace=100,nonsense=1,scheddetail"});
  expect_lines(1);
  cr_expect(said_has("WEFT_DEBUG=") && said_has("schedtrace=0..3600000"), "%s", said.c_str());
  cr_expect_eq(k.schedtrace_ms, 100);
  cr_expect_not(k.wire || k.scheddetail);
  parse({"WEFT_DEBUG=wire=1,,"});
  expect_lines(0);
}

Test(knobs, an_empty_value_is_none_and_the_checked_mark_is_known) {
  Knobs k = parse({"WEFT_PROCS=", "WEFT_DEBUG=", "WEFT__CHECKED=0123456789abcdef"});
  expect_lines(0);
  cr_expect_eq(k.procs, 0);
}

Test(knobs, long_and_hostile_text_stays_one_printable_line) {
  std::string entry = "WEFT_PROCS=" + std::string(5000, '\n') + "\x1b[2J";
  parse({entry.c_str()});
  expect_lines(1);
  cr_expect_lt(said.size(), 1025u);
  std::string name = "WEFT_" + std::string(5000, 'A') + "=1";
  parse({name.c_str()});
  expect_lines(1);
}

Test(knobs, lists_match_the_last_part_of_a_path_whole) {
  cr_expect(knob_list_has("python3,redis-server", "/usr/bin/redis-server"));
  cr_expect(knob_list_has("python3", "python3"));
  cr_expect_not(knob_list_has("python3", "/usr/bin/python3.11"));
  cr_expect_not(knob_list_has("python3.11", "/usr/bin/python3"));
  cr_expect_not(knob_list_has("", "/usr/bin/python3"));
}

Test(knobs, the_sum_ignores_order_and_its_own_variable_only) {
  const char* a[] = {"WEFT_PROCS=1", "WEFT_SPIN=2", "HOME=/", nullptr};
  const char* b[] = {"WEFT_SPIN=2", "WEFT__CHECKED=00", "WEFT_PROCS=1", nullptr};
  const char* c[] = {"WEFT_SPIN=2", "WEFT_PROCS=2", nullptr};
  auto sum = [](const char** e) { return knobs_env_sum(const_cast<char**>(e)); };
  cr_expect_eq(sum(a), sum(b));
  cr_expect_neq(sum(a), sum(c));
}
