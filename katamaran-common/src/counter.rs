//! What is counted: the index <-> meaning of the per-CPU arrays.

macro_rules! indexed {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum $name { $($(#[$doc])* $variant,)+ }

        impl $name {
            /// All of them, in index order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];
            /// How many there are: the length of the array.
            #[expect(clippy::cast_possible_truncation, reason = "a handful of variants")]
            pub const COUNT: u32 = Self::ALL.len() as u32;

            /// The slot in the array.
            #[must_use]
            #[inline(always)]
            pub const fn index(self) -> u32 {
                self as u32
            }
        }
    };
}

indexed! {
    /// One slot of the ledger: skbs, packets on the wire and bytes.
    Counter {
        /// S1: for V, seen at S's hook while not OFF.
        Arrived,
        /// S2: passed on towards V's tap on S.
        Passed,
        /// S3: redirected to D.
        Redirected,
        /// At S's hook, not for V: passed, whatever the mode.
        SourceOther,
        /// Should have been redirected, could not be encapsulated: passed (part of S2).
        EncapFailed,
        /// Should have been redirected, but does not fit the path: passed (part of S2).
        TooBig,
        /// Redirected (part of S3), and no copy could be retained: the ring was full.
        NotRetained,
        /// Neighbour requests for V that were answered in V's stead.
        NeighbourAnswered,
        /// D1: taken out of the tunnel for V at D.
        Tunnelled,
        /// At D's underlay hook, not ours: passed.
        DeliverOther,
        /// Ours, but could not be taken out of the tunnel: passed.
        DecapFailed,
        /// D3, the part that came by the tunnel.
        TapTunnelled,
        /// D2: reached D's tap without the tunnel.
        TapDirect,
        /// On D's tap, not for V: passed.
        TapOther,
        /// Handed to the driver of the tap, for V.
        Offered,
        /// Handed to the driver of the tap, not for V.
        OfferedOther,
    }
}

indexed! {
    /// Where an order-free digest is kept.
    Digest {
        /// Of all that was redirected (beside S3).
        Redirected,
        /// Of all that was taken out of the tunnel (beside D1).
        Tunnelled,
        /// Of all of V's that reached D's tap (beside D3).
        Tap,
    }
}

indexed! {
    /// Moments, in nanoseconds of `CLOCK_MONOTONIC`; 0 is never.
    Stamp {
        /// The latest packet passed on to the tap on S.
        LastPassed,
        /// The first packet redirected since the flip.
        FirstRedirected,
        /// The latest packet redirected.
        LastRedirected,
        /// The latest packet taken out of the tunnel on D.
        LastTunnelled,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_are_dense_and_in_order() {
        for (index, counter) in (0u32..).zip(Counter::ALL) {
            assert_eq!(counter.index(), index);
        }
        for (index, digest) in (0u32..).zip(Digest::ALL) {
            assert_eq!(digest.index(), index);
        }
        for (index, stamp) in (0u32..).zip(Stamp::ALL) {
            assert_eq!(stamp.index(), index);
        }
    }
}
