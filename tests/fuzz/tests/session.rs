//! The session's fuzz target on a bounded number of random inputs. Alone in its process, whose descriptors it counts.

use spp_fuzz::bounded::run;
use spp_fuzz::{open_descriptors, session};

#[test]
fn messages_in_any_order_leave_a_port_that_serves_the_next_peer() {
    // A good set-up opens what the process keeps for all others.
    session(&[1]);
    let before = open_descriptors();
    run(200, 3000, session);
    assert_eq!(open_descriptors(), before, "descriptors were left behind");
}
