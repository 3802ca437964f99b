//! The benchmark without cargo: see the library.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    spp_bench::main(None)
}
