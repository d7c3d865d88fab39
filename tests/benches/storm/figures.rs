//! The figures of one way to watch, and their table.

/// What was measured in one round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    /// Nanoseconds per event in the kernel.
    pub(crate) ns: f64,
    /// By which share fewer packets were sent than unwatched.
    pub(crate) slower: f64,
    /// Share of the events that arrived of half a million per second.
    pub(crate) paced: Option<f64>,
    /// The same of a storm without limit.
    pub(crate) full: Option<f64>,
    /// CPUs that the watcher used in that.
    pub(crate) cpus: f64,
}

/// The one in the middle; the greater of two.
pub(crate) fn median(numbers: &mut [f64]) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Begins the table, in Markdown.
pub(crate) fn heading() {
    println!(
        "| watched by | ns/event | storm slower | arrives at 500 k/s | at full storm | CPUs |"
    );
    println!("| --- | ---: | ---: | ---: | ---: | ---: |");
}

/// A line of the table.
pub(crate) fn row(name: &str, figures: &[Figures]) {
    let middle = |of: fn(&Figures) -> f64| median(&mut figures.iter().map(of).collect::<Vec<_>>());
    let share = |of: fn(&Figures) -> Option<f64>| {
        let mut shares: Vec<f64> = figures.iter().filter_map(of).collect();
        if shares.is_empty() {
            "-".to_owned()
        } else {
            format!("{:.2} %", median(&mut shares) * 100.0)
        }
    };
    println!(
        "| {name} | {:.0} | {:.0} % | {} | {} | {:.2} |",
        middle(|figures| figures.ns),
        middle(|figures| figures.slower) * 100.0,
        share(|figures| figures.paced),
        share(|figures| figures.full),
        middle(|figures| figures.cpus),
    );
}
