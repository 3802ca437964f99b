//! spp-agent
#![forbid(unsafe_code)]
