# The mechanism driver's side of etcd, key by key as networking-spp writes it; sourced by the lab's scripts.
prefix=/spp/openstack
host=lab

# key_is KEY VALUE
key_is() { [ "$(etcdctl get --print-value-only "$prefix/$1")" = "$2" ]; }

# bind_port PORT_ID PHYS VHOST_ID BIND_JSON: take the vhost, describe the port, ask for the plug, then watch for `up`,
# without a start revision and without ever reading the key.
bind_port() {
    etcdctl txn <<TXN | grep -qx SUCCESS || { echo "vhost $3 is not free"; return 1; }
value("$prefix/vhost/$host/$2/$3") = "None"

put $prefix/vhost/$host/$2/$3 $1


TXN
    etcdctl put "$prefix/bind_port/$host/$1" "$4" >/dev/null
    etcdctl put "$prefix/action/$host/$1" plug >/dev/null
    : >"/run/watch-$1"
    etcdctl watch "$prefix/port_status/$host/$1" >"/run/watch-$1" 2>&1 &
    watcher=$!
    for _ in $(seq 600); do
        if grep -qx up "/run/watch-$1"; then
            kill $watcher
            return 0
        fi
        sleep 0.1
    done
    kill $watcher
    echo "no up for $1 in a minute"
    etcdctl get --prefix /spp
    return 1
}

# unbind_port PORT_ID PHYS VHOST_ID: ask for the unplug and wait until the agent has given everything back.
unbind_port() {
    etcdctl put "$prefix/action/$host/$1" unplug >/dev/null
    for _ in $(seq 120); do
        if key_is "vhost/$host/$2/$3" None &&
            ! etcdctl get --prefix --keys-only "$prefix" | grep -q "/$1\$"; then
            return 0
        fi
        sleep 0.5
    done
    echo "the agent did not clean up after $1"
    etcdctl get --prefix /spp
    return 1
}
