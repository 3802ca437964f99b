//! spp-drivers
