//! `cargo bench --bench node`: spp beside DPDK. All of it is in the package `spp-bench`, which this gives the binary it was
//! built with.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    spp_bench::main(Some(env!("CARGO_BIN_EXE_spp")))
}
