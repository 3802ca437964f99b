//! P6: the ring between cores, against rte_ring with one producer and one consumer.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use spp_drivers::spsc::{Consumer, Producer, ring};

use crate::cpu::{self, Watched};
use crate::dpdk;
use crate::runner::{Case, Plan, Reading, Result, Side};
use crate::testpmd::{Talker, eal};

const SLOTS: usize = 1024;

/// Elements of 8 bytes, which a pointer is, and of 16, which a packet buffer is.
pub fn measure(plan: &Plan, done: &mut dyn FnMut(Case)) {
    for (bytes, bursts) in [(8, &[1, 8, 32][..]), (16, &[1, 8, 32])] {
        if plan.quick && bytes == 16 {
            continue;
        }
        for &burst in bursts {
            let case =
                Case::new("P6", format!("ring, {bytes} B elements, burst {burst}"), "Mops/s", Some(1.0));
            let ours: Box<dyn Side> = match bytes {
                8 => Box::new(Ours::new(plan, burst, 0u64)),
                _ => Box::new(Ours::new(plan, burst, [0u64; 2])),
            };
            done(case.measure(plan, Ok(ours), baseline(plan, bytes, burst)));
        }
    }
}

struct Ours<T> {
    ends: Option<(Producer<T>, Consumer<T>)>,
    element: T,
    burst: usize,
    producer_cpu: usize,
    consumer_cpu: usize,
}

impl<T: Copy + Send + 'static> Ours<T> {
    fn new(plan: &Plan, burst: usize, element: T) -> Ours<T> {
        let (producer_cpu, consumer_cpu) = (plan.frontend_cpu, plan.backend_cpu);
        Ours { ends: Some(ring(SLOTS)), element, burst, producer_cpu, consumer_cpu }
    }
}

fn own_thread() -> Watched {
    Watched::thread(std::process::id(), cpu::tid())
}

impl<T: Copy + Send + 'static> Side for Ours<T> {
    fn sample(&mut self, window: Duration) -> Result<Reading> {
        let (mut producer, mut consumer) = self.ends.take().ok_or("the ring was lost in a failed sample")?;
        let (burst, element, cpu) = (self.burst, self.element, self.producer_cpu);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let pushing = std::thread::spawn(move || {
            let pinned = cpu::pin(cpu);
            let watched = own_thread();
            while !stopped.load(Ordering::Relaxed) {
                producer.push_burst(burst, std::iter::repeat_n(element, burst));
            }
            pinned.map(|()| (producer, watched.share()))
        });
        let cpu = self.consumer_cpu;
        let popping = std::thread::spawn(move || {
            let pinned = cpu::pin(cpu);
            let watched = own_thread();
            let (mut n, start) = (0, Instant::now());
            while start.elapsed() < window {
                for _ in 0..64 {
                    n += consumer.pop_burst(burst, |value| {
                        black_box(value);
                    });
                }
            }
            pinned.map(|()| (consumer, n as f64 / start.elapsed().as_secs_f64(), watched.share()))
        });
        let popped = popping.join().map_err(|_| "the consumer panicked".to_owned());
        stop.store(true, Ordering::Relaxed);
        let (producer, share) = pushing.join().map_err(|_| "the producer panicked".to_owned())??;
        let (consumer, rate, other_share) = popped??;
        self.ends = Some((producer, consumer));
        Ok(Reading { value: rate / 1e6, cycles_per_packet: None, cpu_share: share.min(other_share) })
    }
}

struct Baseline {
    talker: Talker,
    threads: Vec<Watched>,
}

fn baseline(plan: &Plan, bytes: usize, burst: usize) -> Result<Box<dyn Side>> {
    let lcores = format!("0@{},1@{}", plan.backend_cpu, plan.frontend_cpu);
    let talker = dpdk::start("ring", eal(&lcores, 64), &[SLOTS, bytes, burst].map(|n| n.to_string()))?;
    let mut threads = Watched::named(talker.pid(), "lcore-worker");
    threads.push(Watched::thread(talker.pid(), talker.pid()));
    Ok(Box::new(Baseline { talker, threads }))
}

impl Side for Baseline {
    fn sample(&mut self, window: Duration) -> Result<Reading> {
        self.threads.iter_mut().for_each(Watched::restart);
        self.talker.say(&window.as_millis().to_string())?;
        let line = self.talker.wait_for(" ")?;
        let rate: f64 = line.split(' ').next().and_then(|n| n.parse().ok()).ok_or("ring.c said nonsense")?;
        let cpu_share = cpu::smallest_share(&self.threads);
        Ok(Reading { value: rate / 1e6, cycles_per_packet: None, cpu_share })
    }
}
