"""The proving ground: real Debian systems for the tests. This package alone makes them.

    host.py      what the ground needs of this machine: root, Debian, builder packages, the mirror of its apt
    roots.py     the table of root file systems, and the cache that holds them
    keeper.py    the process that holds one machine's namespaces (run as a program of its own)
    machine.py   Machine: a throw-away copy of a root, with its own processes, network, host name and mounts
    pluto.py     a real pluto in a machine
    inits.py     a machine under an init system: systemd, sysvinit, OpenRC, runit, s6
    uml.py       a kernel for a machine (user-mode-linux) with ESP and AH, which this machine's kernel may lack
    gateways.py  two gateways in such a kernel, for real tunnels
    surroundings.py  the test process without what it inherits: signals, umask, limits, locale

Root file systems live in ${XDG_CACHE_HOME:-~/.cache}/ipsec-tests; you may remove it whenever no test runs.
The ground writes nowhere else. The changes of a machine are in memory. The kernel ends everything in a machine when its
keeper ends, and the keeper ends with the test process, even if that is killed.
"""
