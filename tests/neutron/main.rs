//! Whole nodes under a control side that is not ours: networking-spp's drivers from PyPI, as they are published, and
//! `spp bind` beside them.
//!
//! `spp run --amqp` reports to oslo.messaging's RPC server through a RabbitMQ of the test's own.
//!
//! Each test has an etcd of its own, nodes on software NICs (`spp run --fold-cores`), and a Python process with the
//! mechanism driver and the TaaS driver on stand-ins for neutron's port and tap contexts (`control.py`). Without etcd, or
//! without the virtual environment `.ci/setup --tests` builds, they are skipped.

#[path = "../../agent/tests/amqp/support/mod.rs"]
#[allow(dead_code, clippy::duplicate_mod)]
mod amqp;
mod bind;
mod control;
mod host;
mod mechanism;
mod reports;
#[path = "../etcd/support/mod.rs"]
#[allow(dead_code)]
mod support;
mod taas;

/// MAC address of the `n`th guest.
fn mac(n: usize) -> String {
    format!("fa:16:3e:00:00:{n:02x}")
}

/// Id of the `n`th port, as neutron would make it.
fn port(n: usize) -> String {
    format!("6160c9da-b2d5-4236-8413-{n:012x}")
}
