-- | What is different from one commit to the next.
module Revision (revision) where

revision :: String
revision = "the first commit"
