//! spp-vhost
