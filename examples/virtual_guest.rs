//! A synthetic guest.
mod guest;
fn main() {
    let s = std::env::args().nth(1).expect("socket");
    let g = guest::frontend::Guest::connect(s, &guest::frontend::GuestOptions::default())
        .expect("connect");
    println!("{:?}", g.info());
    let mut c = guest::client::Client::new(&g, 1);
    println!("{:?}", c.init());
    println!("{:?}", c.getattr(1, None));
    println!("{:?}", c.lookup(1, "nope"));
    let f = c.create(1, "f", 0o644, libc::O_RDWR).expect("create");
    println!("{:?}", c.write(f.entry.nodeid, f.open.fh, 0, &[7; 10000]));
    println!(
        "{:?}",
        c.read(f.entry.nodeid, f.open.fh, 0, 20000).map(|v| v.len())
    );
    println!("{:?}", c.tmpfile(1, 0o600, libc::O_RDWR));
}
