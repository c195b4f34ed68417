//! What the bus does to a function: a host comes, goes, sleeps and resets. Called by `thread`, with what ep0 heard.

use crate::{
    gadget::{BusEvent, endpoints::Endpoints},
    ring::Mover,
};

use super::{
    command::{Event, HostState},
    function::{After, Function},
};

impl<E: Endpoints, M: Mover> Function<E, M> {
    /// The bus changed.
    pub fn bus(&mut self, event: BusEvent) {
        match event {
            BusEvent::Bound => {}
            BusEvent::TakenOver { speed, .. } => self.taken_over(speed),
            BusEvent::Enabled { speed, .. } => {
                self.host = HostState::Connected { speed };
                self.forget_host();
                self.tell(Event::Connected { function: self.name.clone(), speed });
                self.abort(After::Idle);
            }
            BusEvent::Disabled | BusEvent::Unbound => {
                if self.host != HostState::Disconnected {
                    self.host = HostState::Disconnected;
                    self.forget_host();
                    self.tell(Event::Disconnected { function: self.name.clone() });
                }
                self.abort(After::Down);
                self.store_all();
            }
            BusEvent::Suspended => {
                if let HostState::Connected { speed } = self.host {
                    self.host = HostState::Suspended { speed };
                    self.tell(Event::Suspended { function: self.name.clone() });
                    self.store_all();
                }
            }
            BusEvent::Resumed => {
                if let HostState::Suspended { speed } = self.host {
                    self.host = HostState::Connected { speed };
                    self.tell(Event::Resumed { function: self.name.clone() });
                }
            }
            BusEvent::Reset(ticket) => {
                self.tell(Event::Reset { function: self.name.clone() });
                self.abort(After::Reset(ticket));
            }
        }
    }

    /// Each unit allows removal again and raises unit attention: the host is a new one, or none.
    fn forget_host(&mut self) {
        self.target.bus_reset();
        for lun in self.target.luns() {
            self.note_prevented(lun);
            self.keep_unit(lun);
        }
    }
}
