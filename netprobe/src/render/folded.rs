//! Stacks as FlameGraph's folded text: `root;frame;leaf weight`, one stack per line.

use std::io::{self, Write};

use anyhow::{Context, Result, bail};

use super::text::is_invisible;
use crate::report::{Flame, Folded};

/// Writes every stack.
pub fn write(out: &mut dyn Write, flame: &Flame) -> io::Result<()> {
    flame
        .stacks
        .iter()
        .try_for_each(|stack| writeln!(out, "{}", line(stack)))
}

/// One stack. Frames are names that anybody may choose; the separators of the format and
/// everything that is not printable become `_`, and so do spaces before a number at the end of a frame, which readers
/// take for a weight, and the space of a `# ` at the beginning, which makes a comment.
pub fn line(stack: &Folded) -> String {
    let mut line = String::new();
    for (index, frame) in stack.frames.iter().enumerate() {
        if index > 0 {
            line.push(';');
        }
        let number = frame.trim_end_matches(|letter: char| {
            letter == ' ' || letter == '.' || letter.is_ascii_digit()
        });
        let is_comment = index == 0 && frame.starts_with("# ");
        line.extend(frame.char_indices().map(|(at, character)| match character {
            ';' => '_',
            ' ' if at >= number.len() || (is_comment && at == 1) => '_',
            character if character.is_control() || is_invisible(character) => '_',
            character => character,
        }));
    }
    line.push(' ');
    line.push_str(&stack.weight.to_string());
    line
}

/// Frames of a text that are read.
const MOST_FRAMES: usize = 4 << 20;

/// Reads stacks as this and other tools write them.
pub fn read(text: &str) -> Result<Vec<Folded>> {
    read_at_most(text, MOST_FRAMES)
}

fn read_at_most(text: &str, most: usize) -> Result<Vec<Folded>> {
    let mut stacks = Vec::new();
    let mut room = most;
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim().is_empty() || line.starts_with("# ") {
            continue;
        }
        let parsed = line
            .trim_end()
            .rsplit_once(' ')
            .and_then(|(frames, weight)| {
                // Other tools may write fractions; of those only whole numbers are counts.
                let (whole, fraction) = weight.split_once('.').unwrap_or((weight, ""));
                let weight = whole.parse().ok()?;
                if fraction.bytes().any(|digit| digit != b'0') {
                    return None;
                }
                let frames = frames.split(';').take(most + 1);
                let frames = frames.map(Into::into).collect();
                Some(Folded { frames, weight })
            });
        let Some(stack) = parsed else {
            if line.starts_with('#') {
                continue;
            }
            bail!("line {number} is no folded stack with a whole number at its end");
        };
        room = room
            .checked_sub(stack.frames.len())
            .with_context(|| format!("it has more than the {most} frames that are read"))?;
        stacks.push(stack);
    }
    Ok(stacks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn separators_in_names_do_not_split_a_stack() {
        let stack = Folded {
            frames: vec![Arc::from("a;b\nc"), Arc::from("tcp_v4_rcv_[k]")],
            weight: 7,
        };
        assert_eq!(line(&stack), "a_b_c;tcp_v4_rcv_[k] 7");
    }

    #[test]
    fn a_name_that_ends_in_a_number_is_no_second_weight() {
        let of = |name: &str| {
            line(&Folded {
                frames: vec![Arc::from(name), Arc::from(name)],
                weight: 7,
            })
        };
        assert_eq!(of("worker 3"), "worker_3;worker_3 7");
        assert_eq!(of("a b 1 2.5 "), "a b_1_2.5_;a b_1_2.5_ 7");
        assert_eq!(of("v 2 x"), "v 2 x;v 2 x 7");
    }

    #[test]
    fn threads_whose_names_begin_like_a_comment_are_read_again() {
        for name in ["#1", "#worker", "# x", "#"] {
            let stack = Folded {
                frames: vec![Arc::from(name), Arc::from("main")],
                weight: 7,
            };
            let read = read(&line(&stack)).unwrap();
            assert_eq!(read.len(), 1, "{name}");
            assert_eq!(read[0].frames.len(), 2, "{name}");
        }
        assert_eq!(read("#comment\n# a;b 3\n#\n").unwrap(), []);
    }

    #[test]
    fn stacks_are_read_line_by_line() {
        let stacks = read("a;b c 3\n\n# comment\nd 1.0\n").unwrap();
        assert_eq!(line(&stacks[0]), "a;b c 3");
        assert_eq!((stacks[0].weight, stacks[1].weight), (3, 1));
        for wrong in ["a;b", "a;b 1.5", "a;b -3", "a;b 18446744073709551616"] {
            let refused = read(&format!("a;b 3\n{wrong}\n")).unwrap_err();
            assert_eq!(
                refused.to_string(),
                "line 2 is no folded stack with a whole number at its end"
            );
        }
    }

    #[test]
    fn texts_that_would_take_all_memory_are_refused() {
        for text in [";".repeat(1000) + " 1", "a 1\n".repeat(1001)] {
            let refused = read_at_most(&text, 1000).unwrap_err().to_string();
            assert_eq!(refused, "it has more than the 1000 frames that are read");
        }
    }
}
