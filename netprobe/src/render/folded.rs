//! Stacks as FlameGraph's folded text: `root;frame;leaf weight`, one stack per line.

use std::io::{self, Write};

use crate::report::{Flame, Folded};

/// Writes every stack.
pub fn write(out: &mut dyn Write, flame: &Flame) -> io::Result<()> {
    flame
        .stacks
        .iter()
        .try_for_each(|stack| writeln!(out, "{}", line(stack)))
}

/// One stack. Frames are names that anybody may choose; the separators of the format and
/// everything that is not printable become `_`.
pub fn line(stack: &Folded) -> String {
    let mut line = String::new();
    for (index, frame) in stack.frames.iter().enumerate() {
        if index > 0 {
            line.push(';');
        }
        line.extend(frame.chars().map(|character| match character {
            ';' => '_',
            character if character.is_control() || is_invisible(character) => '_',
            character => character,
        }));
    }
    line.push(' ');
    line.push_str(&stack.weight.to_string());
    line
}

/// Characters that hide or reorder what is shown.
const fn is_invisible(character: char) -> bool {
    matches!(character,
        '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202f}' | '\u{2060}'..='\u{206f}'
        | '\u{feff}' | '\u{fff9}'..='\u{ffff}' | '\u{e0000}'..='\u{e0fff}')
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
}
