//! Ranks that talk: sums, gathers and broadcasts of any number of them, and what the others get when one dies, hangs or
//! does something else. Threads and processes' sockets alike.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use deft_engine::ranks::{Communicator, Kind, Memory, Message, RankError, Tcp};

const RANKS: [u32; 5] = [1, 2, 3, 4, 8];
/// Longer than a loaded machine needs, where nobody is late.
const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(300);

type Boxed = Box<dyn Communicator>;

/// An address that nobody listens at.
fn address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// How ranks meet.
#[derive(Clone, Copy, Debug)]
enum Over {
    Memory,
    Tcp,
}

const BOTH: [Over; 2] = [Over::Memory, Over::Tcp];

/// Runs `work` on every rank, on threads of their own; what each returned.
fn run<T: Send>(
    over: Over,
    ranks: u32,
    timeout: Duration,
    work: impl Fn(Boxed) -> T + Sync,
) -> Vec<T> {
    let (mut rooms, address) = (Memory::new(ranks, timeout).unwrap(), address());
    rooms.reverse();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..ranks)
            .map(|rank| {
                let (work, address, room) = (&work, &address, rooms.pop().unwrap());
                scope.spawn(move || match over {
                    Over::Memory => work(Box::new(room)),
                    Over::Tcp => {
                        drop(room);
                        work(Box::new(Tcp::meet((rank, ranks), address, LONG, timeout).unwrap()))
                    }
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Values of a rank whose sum depends on the order.
fn values(rank: u32, count: usize) -> Vec<f32> {
    let of = |i: usize| ((i as f32 + 1.3) * (rank as f32 + 0.7)).sin() * 10f32.powi(i as i32 % 9);
    (0..count).map(of).collect()
}

#[test]
fn sums_are_made_in_the_order_of_ranks_on_every_rank_and_in_every_run() {
    for over in BOTH {
        for ranks in RANKS {
            for count in [0, 1, 17, 4099] {
                let expected = (1..ranks).fold(values(0, count), |sum, rank| {
                    sum.iter().zip(values(rank, count)).map(|(sum, value)| sum + value).collect()
                });
                let sums = run(over, ranks, LONG, |mut at| {
                    let mut sum = values(at.rank(), count);
                    at.all_reduce(&mut sum).unwrap();
                    sum
                });
                assert!(sums.iter().all(|sum| *sum == expected), "{over:?} {ranks} {count}");
            }
        }
    }
}

#[test]
fn gathers_broadcasts_and_barriers_take_turns() {
    for over in BOTH {
        for ranks in RANKS {
            run(over, ranks, LONG, |mut at| {
                let me = at.rank();
                for round in 0..20 {
                    let own = values(me, (me + round) as usize);
                    let all = at.all_gather(&own).unwrap();
                    let of = |rank| values(rank, (rank + round) as usize);
                    assert_eq!(all, (0..ranks).map(of).collect::<Vec<_>>());
                    let root = round % ranks;
                    let heard = at.broadcast(root, &[me as u8, round as u8]).unwrap();
                    assert_eq!(*heard, [root as u8, round as u8]);
                    at.barrier(LONG).unwrap();
                }
                let error = at.broadcast(ranks, &[]).unwrap_err().to_string();
                assert!(
                    error.starts_with(&format!("root is {ranks}; it must be below")),
                    "{error}"
                );
            });
        }
    }
}

#[test]
fn a_rank_that_ends_ends_the_others_at_once_with_its_name() {
    for over in BOTH {
        for ranks in [2, 3, 4, 8] {
            for victim in [0, ranks - 1] {
                let errors = run(over, ranks, LONG, |mut at| {
                    at.barrier(LONG).unwrap();
                    if at.rank() == victim {
                        return None;
                    }
                    let begun = Instant::now();
                    let error = at.all_reduce(&mut [1.0; 5]).unwrap_err();
                    assert!(begun.elapsed() < LONG / 2, "it waited for who will never come");
                    assert_eq!(at.barrier(LONG).unwrap_err(), error, "it stays over");
                    Some(error)
                });
                for error in errors.into_iter().flatten() {
                    assert!(
                        matches!(error, RankError::Gone { rank, .. } if rank == victim),
                        "{over:?} {ranks}: {error}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_rank_whose_thread_panics_is_named() {
    let mut rooms = Memory::new(2, LONG).unwrap();
    let (victim, mut other) = (rooms.pop().unwrap(), rooms.pop().unwrap());
    let thread = std::thread::spawn(move || {
        let _here = victim;
        std::panic::resume_unwind(Box::new("on purpose"));
    });
    let error = other.barrier(LONG).unwrap_err().to_string();
    assert_eq!(error, "rank 1 is gone: its thread panicked");
    assert!(thread.join().is_err());
}

#[test]
fn a_rank_that_is_late_ends_the_others_in_time_with_its_name() {
    for over in BOTH {
        for ranks in [2, 8] {
            for victim in [0, ranks - 1] {
                let errors = run(over, ranks, SHORT, |mut at| {
                    at.barrier(LONG).unwrap();
                    let begun = Instant::now();
                    if at.rank() == victim {
                        // Longer than the others wait, with what they allow rank 0 for its word.
                        std::thread::sleep(6 * SHORT);
                    }
                    let error = at.all_reduce(&mut [1.0; 5]).unwrap_err();
                    (at.rank() != victim).then(|| (error, begun.elapsed()))
                });
                for (error, waited) in errors.into_iter().flatten() {
                    let named = matches!(&error, RankError::Stalled { rank, what, .. }
                        if *rank == victim && what == "an all-reduce");
                    assert!(named, "{over:?} {ranks}: {error}");
                    // Whoever began to wait first ends the waiting of all.
                    assert!(waited > SHORT / 2 && waited < 6 * SHORT, "{waited:?}");
                }
            }
        }
    }
}

#[test]
fn a_rank_that_is_late_but_in_time_is_waited_for() {
    for over in BOTH {
        let sums = run(over, 3, LONG, |mut at| {
            std::thread::sleep(Duration::from_millis(100 * u64::from(at.rank())));
            let mut sum = [1.0];
            at.all_reduce(&mut sum).unwrap();
            sum
        });
        assert_eq!(sums, [[3.0]; 3]);
    }
}

#[test]
fn a_rank_that_ends_the_run_says_why_to_all() {
    for over in BOTH {
        let errors = run(over, 4, LONG, |mut at| {
            at.barrier(LONG).unwrap();
            if at.rank() == 2 {
                at.abort("its disk is full");
            }
            at.all_reduce(&mut [0.0]).unwrap_err().to_string()
        });
        assert_eq!(errors, vec!["rank 2 ended the run: its disk is full"; 4], "{over:?}");
    }
}

#[test]
fn ranks_at_different_collectives_or_of_different_sizes_are_told_apart() {
    for over in BOTH {
        let errors = run(over, 3, LONG, |mut at| {
            let mut values = vec![0.0; 4 + usize::from(at.rank() == 2)];
            let sizes = at.all_reduce(&mut values).unwrap_err().to_string();
            let kinds = match at.rank() {
                1 => at.barrier(LONG).unwrap_err().to_string(),
                _ => at.all_gather(&[]).unwrap_err().to_string(),
            };
            [sizes, kinds]
        });
        let sizes = "rank 2 is at an all-reduce of 20 bytes, rank 0 at an all-reduce of 16 bytes";
        let kinds = "rank 1 is at a barrier, rank 0 at an all-gather";
        assert_eq!(errors, vec![[sizes, kinds]; 3], "{over:?}");
    }
}

#[test]
fn who_waits_without_a_limit_is_woken_by_the_end_of_another() {
    for over in BOTH {
        let errors = run(over, 2, SHORT, |mut at| {
            if at.rank() == 0 {
                at.barrier(LONG).unwrap();
                std::thread::sleep(2 * SHORT);
                return None;
            }
            at.barrier(LONG).unwrap();
            let own = Message { kind: Kind::Operation, bytes: Arc::new([]) };
            Some(at.exchange(own, None).unwrap_err())
        });
        assert!(matches!(errors[1], Some(RankError::Gone { rank: 0, .. })), "{over:?}: {errors:?}");
    }
}

#[test]
fn who_looks_sees_that_rank_0_has_ended_and_nothing_else() {
    for over in BOTH {
        let seen = run(over, 2, LONG, |mut at| {
            at.barrier(LONG).unwrap();
            assert_eq!(at.watch(), Ok(()));
            at.barrier(LONG).unwrap();
            if at.rank() == 0 {
                return None;
            }
            loop {
                match at.watch() {
                    Ok(()) => std::thread::sleep(Duration::from_millis(5)),
                    Err(error) => return Some(error),
                }
            }
        });
        assert!(matches!(seen[1], Some(RankError::Gone { rank: 0, .. })), "{over:?}: {seen:?}");
    }
}

#[test]
fn who_looks_hears_that_another_has_ended_the_run() {
    for over in BOTH {
        let seen = run(over, 3, LONG, |mut at| {
            at.barrier(LONG).unwrap();
            if at.rank() == 2 {
                at.abort("its disk is full");
            }
            loop {
                match at.watch() {
                    Ok(()) => std::thread::sleep(Duration::from_millis(5)),
                    Err(error) => return error.to_string(),
                }
            }
        });
        assert_eq!(seen, vec!["rank 2 ended the run: its disk is full"; 3], "{over:?}");
    }
}

#[test]
fn ranks_that_do_not_fit_together_do_not_meet() {
    assert_eq!(Memory::new(0, LONG).unwrap_err().to_string(), "ranks is 0; it must be at least 1");
    let meet = |at: (u32, u32), address: &str, patience| {
        Tcp::meet(at, address, patience, LONG).map(|_| ()).map_err(|error| error.to_string())
    };
    let error = meet((3, 3), "127.0.0.1:1", SHORT).unwrap_err();
    assert_eq!(error, "rank is 3; it must be below the number of ranks, 3");
    let here = address();
    let error = meet((0, 2), &here, SHORT).unwrap_err();
    assert_eq!(error, format!("rank 0 cannot meet the others at {here}: rank 1 did not come"));
    let error = meet((1, 2), &here, SHORT).unwrap_err();
    assert!(error.starts_with(&format!("rank 1 cannot meet the others at {here}: ")), "{error}");
    // A stranger is sent away, a rank of another run is an error.
    std::thread::scope(|scope| {
        let lead = scope.spawn(|| meet((0, 2), &here, LONG));
        let stranger = || {
            let mut stranger = std::net::TcpStream::connect(&here)?;
            std::io::Write::write_all(&mut stranger, b"GET / HTTP/1.1\r\n\r\n")
        };
        while stranger().is_err() {
            std::thread::sleep(Duration::from_millis(10));
        }
        meet((2, 3), &here, LONG).unwrap();
        let error = lead.join().unwrap().unwrap_err();
        assert!(error.ends_with("rank 2 says that there are 3 ranks, not 2"), "{error}");
    });
}
