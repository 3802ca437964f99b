//! spp-pipeline
#![forbid(unsafe_code)]
