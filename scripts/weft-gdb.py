# weft-gdb.py - gdb commands for a program that runs on weft: a live one or its core.
#
#   source scripts/weft-gdb.py
#   info gs          every live G: state, what it waits for, where it was started
#   info ms          kernel threads of the scheduler, and their last events
#   info ps          Ps, their queues and timers
#   g N bt           backtrace of G N; `g N COMMAND` runs any command in G N's innermost
#                    frame, `g all bt` does it for every G
#
# Needs the debug information of libweft.so (it is in build/libweft.so). Changes nothing in
# the program: a parked G's registers (asm/switch.S has the layout) are shown to gdb by an
# unwinder, as the caller of the selected thread's innermost frame. Cores: the kernel's hold
# all that is needed; gdb's own generate-core-file stumbles over guard pages and loses stacks.
import re

import gdb
import gdb.unwinder

STATES = {0: "dead", 1: "runnable", 2: "running", 3: "syscall", 4: "waiting", 15: "syscall, P lost"}
SAVED = ("r15", "r14", "r13", "r12", "rbx", "rbp", "rip")  # upwards from G::sp + 8


def atomic(value):
    """What a std::atomic holds."""
    for field in ("_M_b", "_M_base"):
        try:
            value = value[field]
        except gdb.error:
            pass
    for field in ("_M_p", "_M_i"):
        try:
            return value[field]
        except gdb.error:
            pass
    return value


def sched():
    try:
        return gdb.parse_and_eval("weft::sched")
    except gdb.error:
        raise gdb.GdbError("no weft in this program, or no debug information of libweft.so")


def chain(value, link):
    seen = 0
    while int(value) != 0 and seen < 10000000:
        yield value
        value = value[link]
        seen += 1


def all_gs():
    sched()
    head = atomic(gdb.parse_and_eval("'weft::(anonymous namespace)::all_gs'"))
    for g in chain(head, "all_next"):
        if state(g) != 0:
            yield g


def all_ms():
    return chain(atomic(sched()["all_m"]), "all_next")


def state(g):
    return int(atomic(g["state"])) & 0xFFFFFFFF


def name_of(table, index):
    try:
        return gdb.parse_and_eval("weft::%s[%d]" % (table, index)).string()
    except gdb.error:
        return str(index)


def wait_of(g):
    kind = int(g["wait"])
    if state(g) != 4 or kind == 0:
        return ""
    text = name_of("kWaitNames", kind)
    if int(g["wait_on"]) != 0:
        text += " on 0x%x" % int(g["wait_on"])
        owner = owner_of(g, kind)
        if owner:
            text += ", " + owner
    return text


def owner_of(g, kind):
    """Who holds the mutex, or who is joined, as `vtid N`."""
    try:
        if name_of("kWaitNames", kind) == "mutex":
            owner = int(g["wait_on"].cast(gdb.lookup_type("int").pointer())[2])
            return "held by vtid %d" % owner if owner else ""
        if name_of("kWaitNames", kind) == "join":
            offset = [f.bitpos // 8 for f in gdb.lookup_type("weft::Thread").fields() if f.name == "join"][0]
            joined = (int(g["wait_on"]) - offset)
            thread = gdb.Value(joined).cast(gdb.lookup_type("weft::Thread").pointer())
            return "joins G %d" % int(thread["g"]["index"])
    except (gdb.error, IndexError):
        pass
    return ""


def thread_text(g):
    if int(g["thread"]) == 0:
        return ""
    try:
        t = g["thread"].cast(gdb.lookup_type("weft::Thread").pointer())
        name = t["name"].string()
        for field in ("start", "start_c11"):
            if int(t[field]) != 0:
                where = gdb.execute("info symbol 0x%x" % int(t[field]), to_string=True).split()[0]
                return (name + " " if name else "") + where
        return name
    except gdb.error:
        return ""


class InfoGs(gdb.Command):
    """Every live G: number, state, vtid, M, wait, name and start function."""

    def __init__(self):
        super().__init__("info gs", gdb.COMMAND_STATUS)

    def invoke(self, arg, from_tty):
        print("%6s  %-9s %10s %4s  %-40s %s" % ("G", "state", "vtid", "M", "waits for", "thread"))
        for g in all_gs():
            s = state(g)
            m = str(int(g["m"]["id"])) if s in (2, 3, 15) and int(g["m"]) else "-"
            mark = "*" if s in (2, 3, 15) else " "
            print("%s%5d  %-9s %10d %4s  %-40s %s%s" % (
                mark, int(g["index"]), STATES.get(s, str(s)), int(g["vtid"]), m, wait_of(g),
                thread_text(g), " (wired)" if g["wired"] else ""))


class InfoMs(gdb.Command):
    """Kernel threads of the scheduler with their last events (info ms N: the last N)."""

    def __init__(self):
        super().__init__("info ms", gdb.COMMAND_STATUS)

    def invoke(self, arg, from_tty):
        count = int(arg) if arg else 8
        for m in all_ms():
            g, p = atomic(m["curg"]), m["p"]
            print("M %d: tid %d p=%s curg=%s%s" % (
                int(m["id"]), int(atomic(m["tid"])), int(p["id"]) if int(p) else "nil",
                int(g["index"]) if int(g) else "nil", " spinning" if m["spinning"] else ""))
            ring = m["trace"]
            n, size = int(ring["n"]), int(ring["entry"].type.range()[1]) + 1
            events = []
            for i in range(max(0, n - min(count, size)), n):
                e = ring["entry"][i % size]
                events.append("%s:%d:%d" % (name_of("kEvNames", int(e["ev"])), int(e["g"]), int(e["arg"])))
            if events:
                print("    " + " ".join(events))


class InfoPs(gdb.Command):
    """Ps: state, M, queue, timers."""

    def __init__(self):
        super().__init__("info ps", gdb.COMMAND_STATUS)

    def invoke(self, arg, from_tty):
        s = sched()
        for i in range(int(s["procs"])):
            p = s["p"][i]
            m = atomic(p["m"])
            q = p["runq"]
            n = (int(atomic(q["tail_"])) - int(atomic(q["head_"]))) & 0xFFFFFFFF
            nxt = atomic(q["next_"])
            print("P %d: %s m=%s tick=%d switches=%d runqsize=%d%s timers=%d" % (
                i, "running" if int(m) else "idle", int(m["id"]) if int(m) else "nil",
                int(atomic(p["tick"])), int(atomic(p["switches"])), n,
                " next=G%d" % int(nxt["index"]) if int(nxt) else "", int(p["timers"]["n_"])))
        print("global queue: %d, idle Ps: %d, idle Ms: %d, spinning: %d" % (
            int(atomic(s["globq_n"])), int(atomic(s["n_idle_p"])), int(s["n_idle_m"]),
            int(atomic(s["n_spinning"]))))


class FrameId:
    def __init__(self, sp, pc):
        self.sp = sp
        self.pc = pc


class GUnwinder(gdb.unwinder.Unwinder):
    """While `regs` is set: the innermost frame's caller is the G with these registers."""

    def __init__(self):
        super().__init__("weft-g")
        self.regs = None
        self.at = None

    def __call__(self, frame):
        if self.regs is None:
            return None
        if (int(frame.read_register("rsp")), int(frame.read_register("rip"))) != self.at:
            return None
        # Frames must lie ever higher: that of the thread we stand on counts as lowest.
        info = frame.create_unwind_info(FrameId(gdb.Value(0), frame.read_register("rip")))
        u64 = gdb.lookup_type("unsigned long")
        for name, value in self.regs.items():
            info.add_saved_register(name, gdb.Value(value).cast(u64))
        return info


unwinder = GUnwinder()
gdb.unwinder.register_unwinder(None, unwinder, True)


def saved_registers(g):
    sp = int(g["sp"])
    words = gdb.Value(sp).cast(gdb.lookup_type("unsigned long").pointer())
    regs = {name: int(words[1 + i]) for i, name in enumerate(SAVED)}
    regs["rsp"] = sp + 64
    return regs


def run_parked(g, command):
    gdb.newest_frame().select()
    newest = gdb.newest_frame()
    at = (int(newest.read_register("rsp")), int(newest.read_register("rip")))
    unwinder.regs, unwinder.at = saved_registers(g), at
    if unwinder.regs["rip"] == int(gdb.parse_and_eval("(unsigned long)&weft_g_entry")):
        unwinder.regs = None
        print("not started yet: %s" % thread_text(g))
        return
    gdb.invalidate_cached_frames()
    try:
        gdb.newest_frame().older().select()
        if re.fullmatch(r"(bt|backtrace|where)\b.*", command):
            for line in gdb.execute(command, to_string=True).splitlines():
                number = re.match(r"#(\d+)( *)(.*)", line)
                if number is None:
                    print(line)
                elif int(number[1]) > 0:
                    print("#%d%s%s" % (int(number[1]) - 1, number[2], number[3]))
        else:
            gdb.execute(command)
    finally:
        unwinder.regs = None
        gdb.invalidate_cached_frames()
        gdb.newest_frame().select()


def run_on_thread(tid, command):
    old = gdb.selected_thread()
    for t in gdb.selected_inferior().threads():
        if tid in t.ptid[1:]:
            t.switch()
            try:
                gdb.execute(command)
            finally:
                old.switch()
            return
    raise gdb.GdbError("no kernel thread %d" % tid)


class GCommand(gdb.Command):
    """g N COMMAND: runs COMMAND (say bt) in the innermost frame of G N. N may be `all`."""

    def __init__(self):
        super().__init__("g", gdb.COMMAND_STACK)

    def invoke(self, arg, from_tty):
        which, _, command = arg.strip().partition(" ")
        if not which:
            raise gdb.GdbError("usage: g N COMMAND, as in g 17 bt")
        command = command.strip() or "bt"
        found = False
        for g in list(all_gs()):
            index = int(g["index"])
            if which not in ("all", str(index)):
                continue
            found = True
            if which == "all":
                print("G %d [%s%s] %s" % (index, STATES.get(state(g), "?"),
                                          ", " + wait_of(g) if wait_of(g) else "", thread_text(g)))
            try:
                if int(atomic(g["on_cpu"])) == 0:
                    run_parked(g, command)
                else:
                    run_on_thread(int(atomic(g["m"]["tid"])), command)
            except gdb.error as e:
                print("  %s" % e)
        if not found:
            raise gdb.GdbError("no live G %s" % which)


InfoGs()
InfoMs()
InfoPs()
GCommand()
