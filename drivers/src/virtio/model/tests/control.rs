//! The control queue: receive modes, addresses, several pairs of queues.

use super::*;

const MQ: u64 = OFFERED | feature::MQ;
const RSS: u64 = MQ | feature::RSS;

fn mac(n: u8) -> MacAddr {
    MacAddr([0x52, 0x54, 0, 9, 9, n])
}

fn frame_to(dst: MacAddr) -> Vec<u8> {
    let mut bytes = frame(1, 64);
    bytes[..6].copy_from_slice(&dst.0);
    bytes
}

/// A bench with closed filters.
fn filtered(offered: u64) -> Bench {
    let mut bench = Bench::unstarted(offered);
    bench.nic.set_promiscuous(false).unwrap();
    bench.start();
    bench
}

impl Bench {
    fn asked(&self) -> Asked {
        self.model(|model| model.asked().clone())
    }

    fn lets_in(&mut self, dst: MacAddr) -> bool {
        self.sim.inject(&frame_to(dst));
        !self.receive(1).is_empty()
    }
}

#[test]
fn receive_modes_are_set_and_survive_a_restart() {
    for offered in ALL_LAYOUTS {
        let mut bench = filtered(offered);
        assert_eq!(bench.asked().receive_modes, [Some(false), Some(true)]);
        bench.nic.set_promiscuous(true).unwrap();
        bench.nic.set_all_multicast(false).unwrap();
        assert_eq!(bench.asked().receive_modes, [Some(true), Some(true)], "promiscuous takes groups too");
        bench.nic.set_promiscuous(false).unwrap();
        assert_eq!(bench.asked().receive_modes, [Some(false), Some(false)]);
        bench.restart();
        assert_eq!(bench.asked().receive_modes, [Some(false), Some(false)]);
        bench.finish();
    }
}

#[test]
fn addresses_are_let_in_by_the_device_and_restored_by_a_restart() {
    for offered in LAYOUTS {
        let mut bench = filtered(offered);
        assert!(bench.lets_in(MAC) && bench.lets_in(MacAddr::BROADCAST) && !bench.lets_in(mac(1)));
        bench.nic.set_unicast(&[mac(1), mac(2), MAC, mac(1)]).unwrap();
        bench.restart();
        assert_eq!(bench.asked().addresses, [mac(1), mac(2)], "the device knows its own");
        assert!(bench.lets_in(mac(1)) && bench.lets_in(mac(2)) && !bench.lets_in(mac(3)));
        assert!(bench.lets_in(MacAddr([1, 0, 0x5e, 0, 0, 1])));
        bench.nic.set_all_multicast(false).unwrap();
        assert!(!bench.lets_in(MacAddr([1, 0, 0x5e, 0, 0, 1])) && bench.lets_in(MacAddr::BROADCAST));
        assert_eq!(bench.counter("promiscuous_fallbacks"), 0);
        bench.finish();
    }
}

#[test]
fn more_addresses_than_the_table_takes_fall_back_to_promiscuous_and_are_counted() {
    let mut bench = filtered(OFFERED);
    let all: Vec<MacAddr> = (0..65).map(mac).collect();
    bench.nic.set_unicast(&all[..64]).unwrap();
    assert!(bench.lets_in(mac(63)) && !bench.lets_in(mac(64)));
    bench.nic.set_unicast(&all).unwrap();
    assert!(bench.lets_in(mac(64)) && bench.lets_in(mac(200)));
    assert_eq!(bench.counter("promiscuous_fallbacks"), 1);
    bench.nic.set_unicast(&[]).unwrap();
    assert!(!bench.lets_in(mac(64)));
    bench.finish();
}

#[test]
fn device_that_refuses_the_addresses_is_made_promiscuous_and_counted() {
    let mut bench = filtered(OFFERED);
    bench.lie(Some(Lie::RefusesCommand(1, 0)));
    bench.nic.set_unicast(&[mac(1)]).unwrap();
    assert_eq!(bench.asked().receive_modes, [Some(true), Some(true)]);
    assert_eq!(bench.counter("promiscuous_fallbacks"), 1);
    bench.works();
    bench.finish();
}

#[test]
fn filters_set_before_the_start_or_without_a_control_queue_are_no_error() {
    let mut bench = Bench::unstarted(OFFERED & !(feature::CTRL_VQ | feature::CTRL_RX));
    bench.nic.set_unicast(&[mac(1)]).unwrap();
    bench.start();
    bench.nic.set_unicast(&[mac(2)]).unwrap();
    bench.nic.set_all_multicast(false).unwrap();
    assert!(bench.lets_in(mac(7)), "such a device lets everything in");
    bench.finish();
}

#[test]
fn command_that_is_never_answered_is_an_error_that_names_it_and_a_restart_heals() {
    for offered in LAYOUTS {
        let mut bench = Bench::new(offered);
        bench.lie(Some(Lie::NoAnswer));
        let error = bench.nic.set_unicast(&[mac(1)]).unwrap_err().to_string();
        assert!(error.contains("MAC_TABLE_SET") && error.contains("within 1s"), "{error}");
        let error = bench.nic.set_promiscuous(false).unwrap_err().to_string();
        assert!(error.contains("the command before it was not answered"), "{error}");
        assert!(bench.reason().contains("MAC_TABLE_SET"), "{}", bench.reason());
        bench.restart();
        assert_eq!(bench.asked().addresses, [mac(1)], "what was wanted meanwhile");
        assert_eq!(bench.nic.health(), Health::Ok);
        bench.finish();
    }
}

#[test]
fn command_that_is_refused_is_an_error_that_names_it() {
    let mut bench = Bench::unstarted(OFFERED);
    bench.lie(Some(Lie::RefusesCommand(0, 0)));
    let error = bench.start_error();
    assert!(error.contains("refuses the command RX_PROMISC (answer 1)"), "{error}");
    assert_eq!(bench.model(|model| model.status()), 0, "and the device is reset");
    bench.lie(None);
    bench.start();
    bench.works();
    bench.finish();
}

/// Every queue gets its frames and sends its own; the flows of one queue stay in order.
fn all_queues_work(bench: &mut Bench) {
    let n_pairs = usize::from(bench.n_pairs);
    let frames: Vec<_> = (0..100).map(|n| frame(n, 200)).collect();
    frames.iter().for_each(|bytes| bench.sim.inject(bytes));
    let mut got = Vec::new();
    for queue in 0..n_pairs {
        let these = bench.receive_at(queue, 5);
        assert!(these.len() > 5, "queue {queue} got {}", these.len());
        got.extend(these);
        bench.send_from(queue, 10, 64);
        assert_eq!(bench.sim.transmitted().len(), 10, "queue {queue}");
        assert_eq!(bench.queues.tx[queue].stats().packets.get(), 10);
    }
    got.sort();
    let mut frames = frames;
    frames.sort();
    assert_eq!(got, frames, "each exactly once");
    assert_eq!(bench.nic.health(), Health::Ok);
}

#[test]
fn several_pairs_are_switched_on_and_restored_by_a_restart() {
    for offered in ALL_LAYOUTS {
        for n_pairs in [2, 3, 4] {
            let mut bench = Bench::unstarted(offered | feature::MQ);
            bench.n_pairs = n_pairs;
            assert_eq!(bench.nic.info().n_queue_pairs, 4);
            bench.start();
            assert_eq!((bench.asked().n_pairs, bench.asked().table), (n_pairs, vec![]));
            all_queues_work(&mut bench);
            let stats = bench.queues.tx[1].stats();
            bench.restart();
            assert_eq!(bench.asked().n_pairs, n_pairs);
            assert_eq!(stats.packets.get(), 10, "counters go on");
            bench.finish();
        }
    }
}

#[test]
fn rss_spreads_over_all_pairs_and_is_preferred() {
    for offered in LAYOUTS {
        let mut bench = Bench::prepared(|model| {
            model.offer(offered | feature::MQ | feature::RSS);
            model.set_max_table(100);
        });
        bench.n_pairs = 3;
        bench.start();
        let Asked { n_pairs, table, key, .. } = bench.asked();
        assert_eq!((n_pairs, table.len(), key.len()), (3, 64, 40), "a power of two");
        assert!(table.iter().take(6).eq(&[0, 1, 2, 0, 1, 2]));
        all_queues_work(&mut bench);
        bench.finish();
    }
}

#[test]
fn device_that_refuses_rss_spreads_as_it_likes() {
    let mut bench = Bench::unstarted(RSS);
    bench.lie(Some(Lie::RefusesCommand(4, 1)));
    bench.n_pairs = 2;
    bench.start();
    assert_eq!((bench.asked().n_pairs, bench.asked().table), (2, vec![]));
    assert_eq!(bench.counter("rss_refusals"), 1);
    all_queues_work(&mut bench);
    bench.finish();
}

#[test]
fn pairs_that_are_refused_are_an_error_that_names_the_command() {
    let mut bench = Bench::unstarted(MQ);
    bench.lie(Some(Lie::RefusesCommand(4, 0)));
    bench.n_pairs = 2;
    let error = bench.start_error();
    assert!(error.contains("MQ_VQ_PAIRS_SET"), "{error}");
    bench.n_pairs = 1;
    bench.start();
    bench.works();
    bench.finish();
}

#[test]
fn rss_that_can_hash_nothing_is_not_accepted() {
    let mut bench = Bench::prepared(|model| {
        model.offer(OFFERED | feature::RSS);
        model.set_max_table(0);
    });
    assert_eq!(bench.nic.info().n_queue_pairs, 1);
    bench.start();
    bench.works();
    bench.finish();
}

#[test]
fn one_pair_accepts_nothing_that_several_need() {
    let mut bench = Bench::unstarted(RSS);
    bench.start();
    assert_eq!(bench.nic.features(), OFFERED);
    bench.finish();
}

#[test]
fn counts_of_pairs_that_can_not_be_are_cut_or_refused() {
    for (claimed, usable) in [(0, 1), (1, 1), (2, 2), (4, 4), (9, 9), (u16::MAX, 64)] {
        let mut bench = Bench::prepared(|model| {
            model.offer(MQ);
            model.set_max_pairs(claimed);
        });
        assert_eq!(bench.nic.info().n_queue_pairs, usable, "{claimed}");
        assert!(bench.nic.start(&bench.pool, usable + 1).is_err());
        assert!(bench.nic.start(&bench.pool, 0).is_err());
        bench.n_pairs = 2.min(usable);
        if claimed > 4 {
            let error = bench.start_error();
            assert!(error.contains("has no queue") || error.contains("claims"), "its control queue: {error}");
        } else {
            bench.start();
            bench.works();
        }
        bench.finish();
    }
}
