//! One USB function at work: joins the transport, the command set, the image and the kernel.
//!
//! [`function::Function`] is the state machine. It knows no thread, and of time only the clock that it is given: it is
//! told what happened (an endpoint request is done, an image operation is done, the bus changed, somebody asks for something) and
//! queues what follows. [`thread`] tells it from one io_uring loop; the simulation and the benches tell it from a model host.
//!
//! | file | what |
//! |---|---|
//! | `command` | what can be asked of a drive, and what it tells: shared with the control socket |
//! | `function` | the state, resets, and which comes next |
//! | `bus` | what the host's coming and going means |
//! | `phases` | a command from its answer to its CSW |
//! | `data_in`, `data_out` | the two data phases with an image behind them |
//! | `compound` | commands of several steps: comparing, WRITE SAME, UNMAP |
//! | `sectors_in` | a data-in phase of whole CD sectors, built from the image's blocks |
//! | `requests`, `settle` | insert, eject, settings; what was written is made durable |
//! | `loaded`, `source` | an image in a drive; what happens when its storage does not answer |
//! | `look` | whether what was read is still what was inserted |
//! | `flights` | the operations that the ring holds, their deadlines, and whether anybody still waits |
//! | `statistics` | what is counted of each drive, and the one place where |
//! | `read_ahead`, `prefetch` | what a stream will read next: hints to the page cache, and the first bytes in a buffer |
//! | `handover` | what outlives the process: how far the command at hand is, and what the drives are |
//! | `takeover` | what a successor makes of it, and how a predecessor leaves |
//! | `pipes` | the endpoints with their buffers and the count of what is queued |
//! | `fault` | the one map from media faults to sense data |
//! | `thread` | the real loop |

mod bus;
pub mod command;
mod compound;
mod data_in;
mod data_out;
mod fault;
mod flights;
pub mod function;
mod handover;
mod loaded;
mod look;
mod phases;
mod pipes;
mod prefetch;
mod read_ahead;
mod requests;
mod sectors_in;
mod settle;
mod source;
pub mod statistics;
mod takeover;
pub mod thread;

pub use command::{
    DriveIndex, DriveState, DriveStatistics, EjectedBy, Event, Handle, HostState, ImageState, Inbox, Refusal,
    ReplyTo, Request, Setting,
};
pub use function::{DriveOptions, EventSink, Function, FunctionOptions};
pub use handover::{Handover, HandoverError, KeptDrive, KeptImage};
pub use requests::block_size;
pub use statistics::{Clock, Clocks, Statistics};
pub use takeover::{Keep, Keeper};
