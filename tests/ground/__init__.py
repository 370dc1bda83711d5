"""The proving ground: real Debian systems for the tests. Only this package makes such systems.

    host.py      the needs of the ground on this machine: root, Debian, builder packages, the mirror of its apt
    roots.py     the table of root file systems, and the cache that holds them
    keeper.py    the process that holds one machine's namespaces (run as a program of its own)
    machine.py   Machine: a throw-away copy of a root, with its own processes, network, host name and mounts
    pluto.py     a real pluto in a machine
    inits.py     a machine under an init system: systemd, sysvinit, OpenRC, runit, s6
    uml.py       a kernel for a machine (user-mode-linux) with ESP and AH, which this machine's kernel may lack
    gateways.py  two gateways in such a kernel, for real tunnels
    listener.py  a socket on which a test answers in pluto's place
    surroundings.py  sets what a test process inherits to defaults: signals, umask, limits, locale

Root file systems live in ${XDG_CACHE_HOME:-~/.cache}/ipsec-tests; you may remove it whenever no test runs.
The ground writes nowhere else. The changes of a machine are in memory. When the keeper of a machine ends, the kernel
kills all processes of the machine. The keeper ends with the test process, even if the test process is killed.
"""
