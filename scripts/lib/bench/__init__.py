"""Measures Pollux, other targets and the bare kernel in turns, judges the goals, and writes docs/performance.md.

Where to look:
    cells.py      what one measurement is of: backing, access, depth, queues, VMs, placement
    plan.py       which cells, in which lanes (side and client), in which order; how long that takes
    backings.py   null, ram, disk, tmpfs: how each is made on a target (add new backings here)
    targets.py    starting and stopping Pollux and SPDK
    clients.py    one run of `pollux bench` or bdevperf against a target, or of fio against a file
    watch.py      what is read off a target while it is loaded: busy time, kernel workers
    lab.py        a group of cells that share targets: start, fill, take turns, stop
    special.py    what is no cell: idle VMs, memory, scraping, two reactors
    thin.py, thin_large.py    thin pools: volumes against their base, SPDK and themselves; pools of 1 and 8 TiB
    thin_lab.py   bases, pools, volumes and images for them; specials.py: all that is no cell
    goals.py      the judged rows; thin_goals.py, special_goals.py: those of special.py; verdict.py: what a row says
    wakeup.py     how long the bare kernel takes to wake a thread
    store.py      the file with every sample
    stats.py      medians, spreads, ratios
    report.py     tables; charts.py and svg.py: plots; render.py: puts both into docs/performance.md
    procs.py, rpc.py, kernel.py, hugepages.py, machine.py    the system around it

Only the standard library of Python 3.11 is used.
"""
