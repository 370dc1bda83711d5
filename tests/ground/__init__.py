"""The proving ground: real Debian systems for the tests, made by this package and by nothing else.

    host.py      what is needed of this machine: root, Debian, builder packages, the mirror of its apt
    roots.py     the table of root file systems and the cache they are built into
    keeper.py    the process that holds one machine's namespaces (run as a program of its own)
    machine.py   Machine: a throw-away copy of a root, with its own processes, network, host name and mounts
    pluto.py     a real pluto in a machine
    inits.py     a machine under an init system: systemd, sysvinit, OpenRC, runit, s6
    uml.py       a kernel of its own for a machine (user-mode-linux), for what this machine's kernel lacks: ESP, AH
    gateways.py  two gateways in such a kernel, for real tunnels

Root file systems live in ${XDG_CACHE_HOME:-~/.cache}/ipsec-tests; remove that directory at any time no test runs.
Nothing here writes anywhere else: a machine's changes are in memory, and the kernel ends all that belongs to it when
its keeper ends, which it does when the test process ends, however that ends.
"""
