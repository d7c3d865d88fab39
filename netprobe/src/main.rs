//! Temporary verifier check.
use netprobe::{kernel::*, probes::*};
use netprobe_common::{config::Config, offsets::*, record::Plain};
fn main() -> anyhow::Result<()> {
    let t = std::time::Instant::now();
    let kb = btf::KernelBtf::open()?;
    let off = offsets::resolve(&kb);
    eprintln!("offsets {:?}", t.elapsed());
    for f in Field::ALL {
        if off.get(*f).is_none() {
            eprintln!("absent {:?}", f.source());
        }
    }
    let b = aya::Btf::from_sys_fs()?;
    eprintln!("aya btf {:?}", t.elapsed());
    let mut c = Config::zeroed();
    c.detail = 1;
    if std::env::args().any(|a| a == "all") {
        c.count = 1;
        c.flame = 1;
        c.stack = 1;
        c.family = 2;
        c.netns = 5;
        c.port = [0, 80];
        c.wake_bytes = 1000;
    }
    let mut e = load::load(
        &c,
        &off,
        load::Sizes {
            ring_bytes: 1 << 20,
            stacks: 4096,
        },
        &b,
    )?;
    eprintln!("maps {:?}", t.elapsed());
    for p in PROBES {
        for h in p.hooks {
            let a = attach::attach(&mut e, &b, h);
            eprintln!("{:?} {}: {:?} {:?}", p.kind, h.sees, a.result, t.elapsed());
        }
    }
    let a = attach::attach(&mut e, &b, &connects::CANDIDATES);
    eprintln!("{}: {:?} {:?}", a.hook.sees, a.result, t.elapsed());
    Ok(())
}
