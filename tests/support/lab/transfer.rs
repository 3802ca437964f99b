//! Bulk transfers between two guests, compared by hash: TCP with busybox's `nc`, UDP with
//! `lab_datagrams`. A guest that sends has called [`prepare`] once.

use super::machine::{Builder, Machine};
use super::{build, program, wait_for};
use std::path::PathBuf;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(180);

/// Programs the guests need beside busybox.
pub struct Tools {
    ethtool: PathBuf,
    datagrams: PathBuf,
}

impl Tools {
    /// Finds or builds them; the error says what is missing.
    pub fn find() -> Result<Tools, String> {
        let ethtool = program("ethtool").ok_or("no ethtool here, run .ci/setup --tests")?;
        Ok(Tools { ethtool, datagrams: build(&["-p", "lab-datagrams"], "lab_datagrams") })
    }

    /// Puts them into a machine.
    pub fn put_into<'a>(&self, machine: Builder<'a>) -> Builder<'a> {
        machine.linked_program(&self.ethtool).program("bin/lab_datagrams", &self.datagrams)
    }
}

/// Makes the file that is sent.
pub fn prepare(guest: &mut Machine, n_kib: u64) {
    guest.sh(&format!(
        "dd if=/dev/urandom of=/run/data bs=1K count={n_kib} 2>/dev/null
         md5sum </run/data >/run/sum"
    ));
}

/// Sends a file over TCP in each of these flows; they arrive as they were.
pub fn tcp(from: &mut Machine, to: &mut Machine, address: &str, n_flows: usize) {
    // The listeners' input stays open, or they would hang up at once.
    let receive = "sleep 600 | nc -l -p $port >/run/got.$port";
    bulk(from, to, n_flows, receive, &format!("nc {address} $port </run/data"), "killall -q sleep");
}

/// The same over UDP.
pub fn udp(from: &mut Machine, to: &mut Machine, address: &str, n_flows: usize) {
    let receive = "lab_datagrams receive $port /run/got.$port";
    bulk(from, to, n_flows, receive, &format!("lab_datagrams send {address} $port /run/data"), ":");
}

/// Runs `receive` and `send` once for each flow, with another `$port`. What was received is to be what was sent.
fn bulk(from: &mut Machine, to: &mut Machine, n_flows: usize, receive: &str, send: &str, end: &str) {
    let ports = (5001..).take(n_flows).map(|port: usize| port.to_string()).collect::<Vec<_>>().join(" ");
    to.sh(&format!(
        "rm -f /run/got.* /run/done.*
         for port in {ports}; do
             ({receive}; touch /run/done.$port) >/dev/null 2>&1 &
         done
         sleep 0.2"
    ));
    let sent = from.sh(&format!(
        "for port in {ports}; do
             (n=0; until {send} >/dev/null; do n=$((n + 1)); [ $n -lt 100 ] || exit 1; sleep 0.2; done) &
         done
         wait
         cat /run/sum"
    ));
    let arrived = format!("{end}; for port in {ports}; do [ -e /run/done.$port ] || exit 1; done");
    to.wait_sh("all that was sent", PATIENCE, &arrived);
    for sum in to.sh(&format!("for port in {ports}; do md5sum </run/got.$port; done")).lines() {
        assert_eq!(sum, sent.trim_end(), "{send}");
    }
}

/// Datagrams to a closed port: only one whose checksum is right is counted. One that is lost is sent again.
pub fn probe(from: &mut Machine, to: &mut Machine, address: &str) {
    for len in [46, 47, 1400] {
        let before = no_ports(to);
        wait_for(&format!("a datagram of {len} bytes"), PATIENCE, || {
            from.sh(&format!("traceroute -n -m 1 -q 1 -w 5 {address} {len}"));
            if no_ports(to) > before { Ok(()) } else { Err("none came".into()) }
        });
    }
}

fn no_ports(guest: &mut Machine) -> u64 {
    counter(&guest.sh("cat /proc/net/snmp"), "Udp", "NoPorts")
}

/// A counter of `/proc/net/snmp`: a line of names, then one of numbers.
pub fn counter(snmp: &str, protocol: &str, name: &str) -> u64 {
    let prefix = format!("{protocol}: ");
    let mut lines = snmp.lines().filter_map(|line| line.strip_prefix(&prefix));
    let (names, numbers) = (lines.next().expect("names"), lines.next().expect("numbers"));
    let index = names.split(' ').position(|n| n == name).expect("the kernel counts it");
    numbers.split(' ').nth(index).expect("as many numbers as names").parse().expect("a number")
}
