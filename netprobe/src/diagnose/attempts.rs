//! How many clients there are behind attempts to connect, where many of those are turned away: who is tries again.

use super::{window::ratio, workers::rounded_up};

/// SYNs that a client sends at most: with Linux 6.5 and later as many within 10 s (after 0, 1, 2, 3, 4, 5 and 7 s:
/// `tcp_syn_linear_timeouts`), before until it gives up (after 0, 1, 3, 7, 15, 31 and 63 s: `tcp_syn_retries`).
pub(super) const SYNS: i32 = 7;

/// Attempts to connect to a listener.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attempts {
    /// Those that were let in.
    pub(super) let_in: u64,
    /// Those that were turned away.
    pub(super) refused: u64,
}

impl Attempts {
    /// All of them.
    pub(super) const fn all(self) -> u64 {
        self.let_in + self.refused
    }

    /// The share that was turned away.
    pub(super) fn refused_share(self) -> f64 {
        ratio(self.refused, self.all())
    }

    /// How many each client makes on average, if it tries until it is let in or has sent all its SYNs: one, another if that is
    /// turned away, and so on.
    pub(super) fn of_each(self) -> f64 {
        let share = self.refused_share();
        (0..SYNS).map(|earlier| share.powi(earlier)).sum()
    }

    /// Clients that make so many; there are more of them where they give up before they have sent all their SYNs.
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    pub(super) fn clients(self) -> u64 {
        match self.all() {
            0 => 0,
            all => rounded_up(all as f64 / self.of_each()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_that_try_again_are_not_counted_for_much_more_than_they_are() {
        // As seen live, with clients that wait for 5 s.
        for (let_in, refused, came) in [(40, 269, 80), (63, 946, 200), (50, 1, 50)] {
            let clients = Attempts { let_in, refused }.clients();
            assert!(clients >= let_in && clients * 2 > came, "{clients}");
            assert!(clients * 2 <= came * 3, "{clients}");
        }
        assert_eq!(
            Attempts {
                let_in: 0,
                refused: 700
            }
            .clients(),
            100
        );
        assert_eq!(
            Attempts {
                let_in: 0,
                refused: 0
            }
            .clients(),
            0
        );
    }
}
