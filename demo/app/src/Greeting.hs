-- | What the server says.
module Greeting (greeting) where

import Revision (revision)

greeting :: String
greeting = "Hello from " ++ revision
