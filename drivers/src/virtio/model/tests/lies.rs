//! What else a device may do wrong, and what else an operator may.

use super::*;

#[test]
fn zero_buffers_claimed_drops_the_frame_only() {
    for offered in LAYOUTS {
        let mut bench = Bench::new(offered);
        assert!(bench.receive_lie(Lie::NumBuffers(0)).is_empty());
        assert_eq!(bench.rx_drops(DropReason::DeviceGarbage), 1);
        bench.works();
        bench.finish();
    }
}

#[test]
fn device_that_asks_for_a_reset_is_restarted() {
    for offered in LAYOUTS {
        let mut bench = Bench::new(offered);
        bench.model(|model| model.need_reset());
        assert!(bench.reason().contains("asks for a reset"));
        bench.restart();
        bench.works();
        bench.finish();
    }
}

#[test]
fn control_mode_without_a_control_queue_is_not_accepted() {
    let mut bench = Bench::new(feature::VERSION_1 | feature::CTRL_RX | feature::MRG_RXBUF);
    assert_eq!(bench.nic.features(), feature::VERSION_1 | feature::MRG_RXBUF);
    bench.nic.set_promiscuous(true).unwrap();
    bench.works();
    bench.finish();
}

#[test]
fn legacy_device_is_an_error_that_says_so() {
    let mut bench = Bench::unstarted(feature::MAC);
    let error = bench.start_error();
    assert!(error.contains("legacy"), "{error}");
    bench.model(|model| model.offer(OFFERED));
    bench.start();
    bench.works();
    bench.finish();
}

#[test]
fn pool_too_small_for_the_ring_is_an_error_with_the_remedy() {
    for offered in LAYOUTS {
        let mut bench = Bench::unstarted(offered);
        let hoard: Vec<_> = std::iter::from_fn(|| bench.cache.alloc()).skip(128).collect();
        let error = bench.start_error();
        assert!(error.contains("give the pool more buffers"), "{error}");
        drop(hoard);
        bench.finish();
    }
}

#[test]
fn second_start_is_refused() {
    let mut bench = Bench::new(OFFERED);
    assert!(bench.nic.start(&bench.pool, 1).is_err());
    bench.works();
    bench.finish();
}
